"""Whether super-batches are traced. Off unless `tracing.endpoint` is set, and then OpenTelemetry is not imported.

Called where gateways and scorers are wired together. The spans themselves are in `spans.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from preceptor.v1 import selection_pb2
from preceptor_service.config import ConfigError, TracingConfig
from preceptor_service.scoring.pool import ScorerPool

Answer = Callable[[], Awaitable[selection_pb2.SelectResponse]]


@dataclass(frozen=True)
class Arrival:
    """A super-batch whose last chunk is here.

    Attributes:
        run_id: its run.
        header: what announced it.
        started: when the header came, by `time.perf_counter`.
        received: when the last chunk came, by the same clock.
        is_repeat: whether its answer was computed for an earlier one.
    """

    run_id: str
    header: selection_pb2.SuperBatchHeader
    started: float
    received: float
    is_repeat: bool


class Tracing(Protocol):
    """The spans of one process. Nothing here raises or waits for a collector, but for `stop`."""

    async def super_batch(self, arrival: Arrival, answer: Answer) -> selection_pb2.SelectResponse:
        """Returns what `answer` does, traced from the arrival to the answer."""
        ...

    def gateway_pool(self, pool: ScorerPool) -> ScorerPool:
        """Returns `pool` with each micro-batch of a traced super-batch traced: once per try."""
        ...

    def scorer_pool(self, pool: ScorerPool, device: str, replica: Callable[[], str]) -> ScorerPool:
        """Returns the pool of the scorer `replica` with the forward passes of traced micro-batches traced."""
        ...

    def stop(self) -> None:
        """Sends what is queued, within seconds, and drops the rest. Blocking; safe to repeat."""
        ...


class _Off:
    async def super_batch(self, arrival: Arrival, answer: Answer) -> selection_pb2.SelectResponse:
        return await answer()

    def gateway_pool(self, pool: ScorerPool) -> ScorerPool:
        return pool

    def scorer_pool(self, pool: ScorerPool, device: str, replica: Callable[[], str]) -> ScorerPool:
        return pool

    def stop(self) -> None:
        pass


def start_tracing(config: TracingConfig) -> Tracing:
    """Returns the tracing that `config` describes; it starts without the collector, and goes on without it.

    Raises:
        ConfigError: as `check_tracing`.
    """
    if config.endpoint is None:
        return _Off()
    tracing: Tracing = _spans().Spans(config)
    return tracing


def check_tracing(config: TracingConfig) -> None:
    """Raises `ConfigError` where tracing is on and cannot start: OpenTelemetry is missing, or `ca` cannot be read."""
    if config.endpoint is not None:
        _spans().credentials(config)


def _spans() -> ModuleType:
    try:
        from preceptor_service import spans
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError(
            "tracing.endpoint is set, and OpenTelemetry is not installed; pip install 'preceptor[tracing]', or drop "
            "the endpoint"
        ) from error
    return spans
