"""`Admission`: which super-batches a gateway takes in, over all its calls, and which it refuses at once."""

from __future__ import annotations

import asyncio

from preceptor.errors import OverloadedError
from preceptor_service.byte_budget import ByteBudget
from preceptor_service.config import GatewayConfig
from preceptor_service.pipeline import Pipeline
from preceptor_service.runs import ActiveRun

_PATIENCE = 0.5
"""Share of a run's deadline that may pass before work on a super-batch begins; later ones are refused."""
_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 0.1, 10.0


class Room:
    """Room for one body, until it is released; repeating that is harmless."""

    def __init__(self, bodies: ByteBudget, body_bytes: int, run_id: str) -> None:
        self._bodies = bodies
        self._body_bytes = body_bytes
        self._run_id = run_id

    def release(self) -> None:
        """Gives the room to others."""
        body_bytes, self._body_bytes = self._body_bytes, 0
        if body_bytes:
            self._bodies.release(body_bytes, self._run_id)


class Admission:
    """Bodies of one gateway, `gateway.body_bytes` of them together, fair between runs. For one event loop."""

    def __init__(self, pipeline: Pipeline, config: GatewayConfig) -> None:
        self.bodies = ByteBudget(config.body_bytes, leaves_room=True)
        self._pipeline = pipeline

    async def admit(self, run: ActiveRun, body_bytes: int) -> Room:
        """Returns room for a body that was announced; waits for it at most half of the run's deadline.

        Raises:
            OverloadedError: at once, where that would not be enough, or scorers would not come to it in time. A run
                that rather draws uniformly is not refused for the sake of scorers: the pipeline answers it.
        """
        if body_bytes == 0:
            return Room(self.bodies, 0, run.run_id)  # it is no super-batch, and is told so later
        patience_s = _PATIENCE * run.deadline_s
        if run.spec.on_deadline != "uniform":
            _refuse(self._pipeline.expected_wait_s(run), patience_s, "its scorers are behind")
        if not self.bodies.has_room(body_bytes, run.run_id):
            _refuse(self.bodies.expected_wait_s(run.run_id), patience_s, "gateway.body_bytes are taken")
        try:
            async with asyncio.timeout(patience_s):
                await self.bodies.take(body_bytes, run.run_id)
        except TimeoutError:
            raise _overloaded(patience_s, 0.0, "gateway.body_bytes are taken") from None
        return Room(self.bodies, body_bytes, run.run_id)


def _refuse(expected_s: float, patience_s: float, why: str) -> None:
    if expected_s > patience_s:
        raise _overloaded(expected_s, expected_s - patience_s, why)


def _overloaded(waiting_s: float, retry_after_s: float, why: str) -> OverloadedError:
    retry_after_s = min(max(retry_after_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
    return OverloadedError(
        f"the gateway is overloaded: {why}, for {waiting_s:.1f} s; try again in {retry_after_s:.1f} s, add "
        "scorers, or offer fewer candidates",
        retry_after_s=retry_after_s,
    )
