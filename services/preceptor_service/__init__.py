"""The Preceptor service: gateway, pipeline, scorers and weight store."""

import os

# Torch maps activations anew for each forward pass; with pages of 4 KiB the kernel took 40 % of the CPU for that. Torch
# reads this with its first tensor, so it stands before everything else.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
