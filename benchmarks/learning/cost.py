"""What a piece of work cost, in operations and in processor seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Operations and time.

    Attributes:
        flops: floating-point operations, counted by `torch.utils.flop_counter`.
        cpu_s: processor time of this process, of all its threads.
    """

    flops: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.cpu_s + other.cpu_s)


class CpuClock:
    """Processor time of the whole process: trainer, client, and the service inside it. Starts running.

    What other processes do to this machine hardly shows in it, unlike in seconds on the wall; shared caches and
    sibling hyperthreads still do.
    """

    def __init__(self) -> None:
        self._started = time.process_time()
        self._left_out_s = 0.0

    @property
    def cpu_s(self) -> float:
        """Seconds so far, less what was left out."""
        return time.process_time() - self._started - self._left_out_s

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Leaves out what this thread does meanwhile; the others go on counting."""
        before = time.thread_time()
        try:
            yield
        finally:
            self._left_out_s += time.thread_time() - before
