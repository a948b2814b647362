"""What the cost meter says is what was computed: forward passes and updates counted where they happen."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from preceptor import CoTraining, MemoryBank, Run, RunSpec, SelectionClient
from preceptor.torch import forward_flops
from preceptor_service.app import start_service
from preceptor_service.config import parse_config
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.scoring import online_training
from preceptor_service.scoring.engine import ScoringEngine
from tests.service import digits
from tests.service.conftest import wait_until

ONLINE: dict[str, Any] = {"in_channels": 1, "image_size": 8, "num_classes": 4, "width": 8}
LEARNER: dict[str, Any] = {**ONLINE, "width": 20}
STEPS, SAVED, SUB_BATCH = 12, 0.4, 64


class Computed:
    """Operations by what they were for, whichever thread did them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.flops: defaultdict[str, float] = defaultdict(float)

    def counted(self, purpose: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            with FlopCounterMode(display=False) as counter:  # counts its own thread alone
                found = compute(*args, **kwargs)
            with self._lock:
                self.flops[purpose] += counter.get_total_flops()
            return found

        return counting


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Computed:
    computed = Computed()
    monkeypatch.setattr(ScoringEngine, "_forward", computed.counted("scoring", ScoringEngine._forward))
    update = online_training._Model.update
    monkeypatch.setattr(online_training._Model, "update", computed.counted("online", update))
    return computed


@pytest.fixture(scope="module")
def by_default(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SelectionClient]:
    """A service whose every setting is the default but its ports and its store."""
    settings = {
        "pool": "in-process",
        "gateway": {"host": "127.0.0.1", "port": 0},
        "metrics": {"host": "127.0.0.1", "port": 0},
        "weights": {"path": str(tmp_path_factory.mktemp("store"))},
    }
    service = start_service(parse_config(settings))
    with SelectionClient(f"127.0.0.1:{service.ports.grpc}", timeout_s=60.0) as client:
        yield client
    service.stop()


def built(config: dict[str, Any], seed: int) -> nn.Module:
    return ArchitectureRegistry().build("small_cnn", config, seed)


def step_on(model: nn.Module, batch: dict[str, Any], rows: Any) -> None:
    """The work of one update; the weights stay, for they are not looked at."""
    images, labels = torch.from_numpy(batch["image"][rows]), torch.from_numpy(batch["label"][rows])
    nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]


def learner_flops() -> float:
    return forward_flops(built(LEARNER, 0), torch.from_numpy(digits.candidates(0, rows=1)["image"]))


# What each way does beside 12 steps of the run, and B: 130 and 321 rows do not fill forward passes.
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "pushed": (130, {}),
    "pushed-with-held-back-steps": (321, {"control_fraction": 0.5, "seed": 3}),
    "pushed-and-begun-late": (130, {"select_from_step": 6}),
    "co-trained": (130, {"co_training": CoTraining(publish_every=4)}),
    "co-trained-with-its-reference": (321, {"co_training": CoTraining(publish_every=4, reference_examples=32)}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_verdict_agrees_with_what_was_computed(by_default: SelectionClient, computed: Computed, way: str) -> None:
    rows, settings = WAYS[way]
    learner, online, reference = built(LEARNER, 0), built(ONLINE, 1), built(ONLINE, 2)
    uniform_examples = STEPS * SUB_BATCH / (1 - SAVED)  # of the run that reaches the same quality
    train_learner = computed.counted("learner", step_on)
    train_online, train_reference = computed.counted("online", step_on), computed.counted("reference", step_on)
    co_training = settings.get("co_training")
    trains_reference = co_training is not None and co_training.reference_examples > 0

    share = None
    if not trains_reference:
        for step in range(3):
            train_reference(reference, digits.candidates(step, rows=100), slice(None))
        share = computed.flops["reference"] / (3 * learner_flops() * uniform_examples)
    run = by_default.create_run(
        RunSpec(
            way,
            model="small_cnn",
            model_config=ONLINE,
            learner_flops=learner_flops(),
            expected_savings=SAVED,
            reference_training_share=share,
            **settings,
        )
    )
    if not trains_reference:
        run.push_reference(reference.state_dict())
    if co_training is None:
        run.push_weights(online.state_dict(), step=0)
    for step in range(STEPS):
        batch = digits.candidates(step, rows=rows)
        chosen = run.select(batch, SUB_BATCH, step=step).indices
        train_learner(learner, batch, chosen)
        if co_training is None:
            train_online(online, batch, chosen)
    if co_training is not None:
        wait_until(lambda: run.status().learner_version == 1 + STEPS // 4, "all blocks were trained")

    uniform = computed.flops["learner"] * uniform_examples / (STEPS * SUB_BATCH)
    measured = sum(computed.flops.values()) / uniform
    status = run.status()
    assert (0 < status.control_super_batches < STEPS) == ("control_fraction" in settings)
    assert status.cost is not None
    assert status.cost.compute_ratio == pytest.approx(measured, rel=0.1)
    if way != "pushed":
        return
    # What scores is known to the row; of an update the meter knows that a backward pass is about two forward passes.
    assert computed.flops["scoring"] == STEPS * 136 * 2 * status.cost.learner_copy_flops


def ready(client: SelectionClient, run_id: str, **settings: Any) -> Run:
    run = client.create_run(digits.spec(run_id, learner_flops=1e6, **settings))
    run.push_reference(digits.weights(2))
    run.push_weights(digits.weights(1), step=0)
    return run


@pytest.mark.parametrize("score", ["learnability", "hard_learner", "easy_reference"])
def test_padding_is_charged_and_little(by_default: SelectionClient, score: str) -> None:
    for rows, forwarded in ((130, 136), (320, 320), (600, 512 + 88)):
        run = ready(by_default, f"padded-{rows}-{score.replace('_', '-')}", score=score)
        run.select(digits.candidates(0, rows), sub_batch_size=64, step=0)
        cost = run.status().cost
        assert cost is not None
        assert cost.ratio * run.status().selected == pytest.approx(forwarded)


def test_nothing_is_charged_before_something_was_scored(by_default: SelectionClient) -> None:
    run = ready(by_default, "begins-late", select_from_step=2)
    for step in range(2):
        run.select(digits.candidates(step), sub_batch_size=8, step=step)
        assert run.status().cost is None
    run.select(digits.candidates(2), sub_batch_size=8, step=2)
    cost = run.status().cost
    assert cost is not None
    assert cost.ratio == 32 / 24


def test_fallbacks_to_a_uniform_draw_are_not_charged_for_scoring(by_default: SelectionClient) -> None:
    run = ready(by_default, "stale", max_staleness_steps=1)
    answers = [run.select(digits.candidates(step), sub_batch_size=8, step=step) for step in range(10)]
    assert [answer.is_fallback for answer in answers] == [False] * 2 + [True] * 8
    cost = run.status().cost
    assert cost is not None
    assert cost.ratio == 2 * 32 / 80


def test_scores_that_serve_more_than_once_cost_less(by_default: SelectionClient) -> None:
    run = ready(by_default, "reused", memory_bank=MemoryBank(100, max_times_sampled=None))
    run.remember(digits.candidates(0), example_id=np.arange(32), step=0)
    assert run.status().cost is None
    for step in range(5):
        run.sample(16, step=step)
    status = run.status()
    assert status.forward_s > 0
    assert status.cost is not None
    assert status.cost.ratio == 32 / 80
    share = status.cost.learner_copy_flops / 1e6
    assert status.cost.compute_ratio == pytest.approx((1 - 0.46) * (1 + share + 32 / 80 / 3 * 2 * share) + share)


def test_a_references_training_is_charged_as_the_run_says(by_default: SelectionClient) -> None:
    found = []
    for run_id, share in (("there-already", 0.0), ("trained-for-it", 0.25)):
        run = ready(by_default, run_id, reference_training_share=share)
        run.select(digits.candidates(0), sub_batch_size=8, step=0)
        assert by_default.get_run(run_id).spec.reference_training_share == share
        cost = run.status().cost
        assert cost is not None
        found.append(cost.compute_ratio)
    assert found[1] - found[0] == pytest.approx(0.25)


def test_the_two_references_of_a_run_are_charged_each(by_default: SelectionClient) -> None:
    run = by_default.create_run(digits.spec("both", learner_flops=1e6, cross_reference=True))
    for fold in (0, 1):
        run.push_reference(digits.weights(2 + fold), fold=fold)
    run.push_weights(digits.weights(1), step=0)
    run.select(digits.candidates(0), sub_batch_size=8, step=0, example_id=np.arange(32))
    cost = run.status().cost
    assert cost is not None
    assert (cost.ratio, cost.reference_scored_share) == (4, 1)
    assert cost.reference_flops == 2 * cost.learner_copy_flops
