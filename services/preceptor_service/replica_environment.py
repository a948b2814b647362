"""What Serve's replicas find in their environment. Read by the two deployments."""

from __future__ import annotations

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""One heap for all threads: with one each, what is freed stays behind in every one of them.

In gateways these are pieces of super-batches. Scorers grew by some 200 bytes with each small super-batch, for tens of
thousands of them.
"""
