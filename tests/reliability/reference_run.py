"""What a run without any fault answers: the reference that faulty ones are compared with.

Losses come from a service of its own without Ray, which nobody disturbs; draws are the pure function of ADR 4.
"""

from __future__ import annotations

import hashlib
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preceptor import RunSpec, SelectionClient
from preceptor_service.app import start_service
from preceptor_service.config import parse_config
from preceptor_service.drawing import Draw, drawn_by_score
from preceptor_service.method_registry import SELECTORS
from tests.ray.candidates import COUNT, DISTINCT, spec, state, super_batch
from tests.reliability.traffic import Step, digest_of

MICRO_BATCH_ROWS = 100
THREADS = 1
"""The order in which a sum is added up depends on them, and so does its last bit."""

LEARNERS = 6
"""Different learner weights; a push of step s brings number s % LEARNERS."""


def learner_of(step: int) -> dict[str, Any]:
    """The weights that are pushed at `step`."""
    return state(f"learner-{step % LEARNERS}")


def settings_of(run_id: str) -> RunSpec:
    """The run of that name: no fallbacks, so that its answers are determined."""
    return spec(run_id, deadline_s=60)


def scorer_settings(replicas: int = 1) -> dict[str, Any]:
    """The section `scorer` of every service that is compared."""
    return {"replicas": replicas, "micro_batch_rows": MICRO_BATCH_ROWS, "threads": THREADS, "num_cpus": 0.1}


@cache
def _scores() -> dict[tuple[int, int], NDArray[np.float32]]:
    """Learner number, super-batch number → the scores that an undisturbed service gives."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "pool": "in-process",
            "gateway": {"host": "127.0.0.1", "port": 0},
            "metrics": {"enabled": False},
            "weights": {"path": str(Path(folder))},
            "scorer": scorer_settings(),
        }
        service = start_service(parse_config(settings))
        try:
            with SelectionClient(f"127.0.0.1:{service.ports.grpc}", timeout_s=60) as client:
                run = client.create_run(spec("reference"))
                run.push_reference(state("reference"))
                scores = {}
                for learner in range(LEARNERS):
                    run.push_weights(learner_of(learner), step=learner)
                    for number in range(DISTINCT):
                        scores[learner, number] = run.score(super_batch(number)).scores
                return scores
        finally:
            service.stop()


def indices(settings: RunSpec, step: int, rank: int, learner_step: int) -> NDArray[np.int64]:
    """What `settings`' run selects at `step` with the weights pushed at `learner_step`."""
    scores = _scores()[learner_step % LEARNERS, step % DISTINCT]
    return drawn_by_score(settings, SELECTORS[settings.selector], scores, Draw(step, rank, COUNT), COUNT)[0]


def differs(settings: RunSpec, rank: int, answer: Step) -> bool:
    """Whether an answer is not what an undisturbed run gives with the weights that it names."""
    if answer.error is not None:
        return False
    if answer.is_fallback or answer.learner_step is None:
        return True
    return answer.indices != digest_of(indices(settings, answer.step, rank, answer.learner_step))


def chained(former: str, selected: str) -> str:
    """Names a history of selections: that of `former`, followed by `selected`."""
    return hashlib.sha256(f"{former}/{selected}".encode()).hexdigest()
