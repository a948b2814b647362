"""How many scorers Serve keeps: from the gateways' own load, which Serve alone does not see.

A gateway hands out micro-batches only as far as `gateway.in_flight_bytes` reaches; the rest waits inside it. So each
call to a scorer tells how many wait, scorers report it to Serve's controller, and the policy adds it to what Serve
counts by itself.
"""

from __future__ import annotations

import math
import time
from typing import Any

from ray.serve.config import AutoscalingContext

POLICY = f"{__name__}:scorers_for_load"
"""The policy as Serve imports it."""

_FORGET_S = 10.0


class GatewayLoad:
    """Micro-batches that wait at gateways, as one scorer was last told. For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[int, float]] = {}

    def note(self, gateway: str, waiting: int) -> None:
        """Notes that `waiting` micro-batches wait at `gateway` now."""
        self._waiting[gateway] = (waiting, time.monotonic())

    def waiting(self) -> int:
        """Returns how many wait at all gateways together; one that was silent for 10 s has none."""
        now = time.monotonic()
        self._waiting = {name: told for name, told in self._waiting.items() if now - told[1] < _FORGET_S}
        return sum(count for count, _ in self._waiting.values())


def scorers_for_load(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Returns how many scorers bring the load of each down to `scorer.target_load` micro-batches; at least 1.

    Load: micro-batches under way, which Serve counts, and those that wait at gateways. Every scorer hears of every
    gateway, so the one that heard most is right. Serve applies the bounds and the delays.
    """
    heard = (context.aggregated_metrics or {}).get("waiting", {})
    load = context.total_num_requests + max(heard.values(), default=0.0)
    target: float = context.config.target_ongoing_requests  # type: ignore[union-attr]  # what scales has a config
    return max(1, math.ceil(load / target)), {}
