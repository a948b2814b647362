"""One block of updates of an online model: what it learns from, that it can be repeated, and what it leaves alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn.functional import normalize

from preceptor import CoTraining
from preceptor.errors import FailedPreconditionError
from preceptor_service.co_training.blocks import Handout
from preceptor_service.co_training.journal import Answer, Columns, entry_content
from preceptor_service.co_training.journal import Journal as Entries
from preceptor_service.models.contrastive import sigmoid_contrastive_loss, softmax_contrastive_loss
from preceptor_service.scoring.pool import ModelRef, TrainedModel, Trainee, Training
from preceptor_service.scoring.update_randomness import own_random_numbers
from preceptor_service.tasks import task_named
from tests.scoring.engines import SMALL, Bench, digits, models
from tests.service.tasks import DUAL, GPT2

NOTHING = np.empty(0, np.float32)
DESCENT: dict[str, Any] = {"optimiser": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
CPU = torch.device("cpu")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def hand_out(bench: Bench, step: int, rows: Columns, rank: int = 0) -> None:
    entries = Entries(bench.store.storage)
    answer = Answer("", np.empty(0, np.int64), NOTHING, NOTHING, None, None, None, 0)
    handout = Handout(step, rank)
    assert entries.create(entries.open("run"), handout, entry_content(handout, {"online": rows}, answer))


def begin(task: str, model: str, config: dict[str, Any], **how: Any) -> Training:
    return Training("run", task, CoTraining(**how), Trainee(model, json.dumps(config, sort_keys=True)))


def after(bench: Bench, training: Training) -> tuple[TrainedModel, dict[str, torch.Tensor]]:
    """The untrained model trained on block 0."""
    untrained = bench.engine.train(training).online
    online = replace(training.online, weights=untrained.weights, optimiser=untrained.optimiser)
    trained = bench.engine.train(replace(training, online=online, block=0)).online
    return trained, load_file(bench.store.verify(trained.weights))


def built(bench: Bench, training: Training) -> torch.nn.Module:
    return bench.registry.build(training.online.architecture, json.loads(training.online.config), training.spec.seed)


def one_step(
    module: torch.nn.Module, loss: torch.Tensor, extra: tuple[torch.Tensor, ...] = ()
) -> dict[str, torch.Tensor]:
    """The state after plain gradient descent by 0.1."""
    parameters = [*module.parameters(), *extra]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        with torch.no_grad():
            parameter -= 0.1 * gradient
    return {name: value.detach() for name, value in module.state_dict().items()}


def pairs(rows: int, without_text: tuple[int, ...] = ()) -> dict[str, NDArray[np.generic]]:
    random = np.random.default_rng(3)
    mask = np.ones((rows, 6), np.int64)
    mask[list(without_text)] = 0
    return {
        "image": random.integers(0, 256, (rows, 1, 8, 8), dtype=np.uint8),
        "input_ids": random.integers(1, 20, (rows, 6)) * mask,
        "attention_mask": mask,
    }


def tensors(rows: Columns) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in rows.items()}


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6) for name in wanted
    )


@pytest.mark.parametrize("contrast", ["softmax", "sigmoid"])
def test_pairs_train_on_the_contrast_of_the_whole_sub_batch_and_learn_its_temperature(
    bench: Bench, contrast: str
) -> None:
    rows = pairs(5, without_text=(2,))
    hand_out(bench, 0, rows)
    training = begin("image_text", "dual_encoder", DUAL, contrast=contrast, **DESCENT)
    trained, weights = after(bench, training)

    module = built(bench, training)
    image, text = module(**tensors({name: np.delete(values, 2, 0) for name, values in rows.items()}))
    image, text = normalize(image, dim=1), normalize(text, dim=1)
    log_scale = torch.tensor(np.log(1 / 0.07 if contrast == "softmax" else 10), dtype=torch.float32, requires_grad=True)
    bias = torch.tensor(-10.0, requires_grad=True)
    if contrast == "softmax":
        extra: tuple[torch.Tensor, ...] = (log_scale,)
        loss = softmax_contrastive_loss(image, text, log_scale)
    else:
        extra = (log_scale, bias)
        loss = sigmoid_contrastive_loss(image, text, log_scale, bias)
    assert trained.mean_loss == pytest.approx(loss.item(), rel=1e-4)
    assert close(weights, one_step(module, loss, extra))
    assert trained.optimiser is not None
    kept = load_file(bench.store.verify(trained.optimiser))
    assert float(kept["update_loss.log_scale"]) == pytest.approx(extra[0].item(), rel=1e-5)


def test_sequences_train_on_the_mean_loss_of_those_that_have_one(bench: Bench) -> None:
    rows = {name: values for name, values in pairs(5, without_text=(0, 3)).items() if name != "image"}
    hand_out(bench, 0, rows)
    config = {**GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    training = begin("causal_lm", "causal_lm", config, **DESCENT)
    trained, weights = after(bench, training)

    module = built(bench, training)
    with_loss = tensors({name: values[[1, 2, 4]] for name, values in rows.items()})
    loss = task_named("causal_lm").loss(module, with_loss).mean()
    assert trained.mean_loss == pytest.approx(loss.item(), rel=1e-4)
    assert close(weights, one_step(module, loss))


def test_where_no_row_has_a_loss_nothing_is_learnt(bench: Bench) -> None:
    hand_out(bench, 0, pairs(2, without_text=(0, 1)))
    training = begin("image_text", "dual_encoder", DUAL)
    trained, weights = after(bench, training)
    assert trained.mean_loss == 0
    assert close(weights, dict(built(bench, training).state_dict()))


def test_ranks_make_one_update_together(bench: Bench) -> None:
    parts = [dict(digits(seed).columns) for seed in (1, 2)]
    for rank, rows in enumerate(parts):
        hand_out(bench, 0, rows, rank)
    training = begin("classification", "small_cnn", SMALL, ranks=2, **DESCENT)
    _, weights = after(bench, training)
    module = built(bench, training)
    together = tensors({name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]})
    assert close(weights, one_step(module, task_named("classification").loss(module, together).mean()))


def floats(seed: int, rows: int = 32) -> dict[str, NDArray[np.generic]]:
    random = np.random.default_rng(seed)
    return {"image": random.standard_normal((rows, 4)).astype(np.float32), "label": random.integers(0, 3, rows)}


def test_dropout_is_drawn_for_each_step_the_same_every_time_and_leaves_torchs_stream_alone(tmp_path: Path) -> None:
    found = []
    for attempt in range(2):
        torch.manual_seed(attempt)
        bench = Bench(tmp_path / str(attempt))
        for step in range(2):
            hand_out(bench, step, floats(7))
        before = torch.random.get_rng_state()
        trained, weights = after(bench, begin("classification", "own", {}, publish_every=2))
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append((trained.weights, trained.optimiser))
        assert not torch.equal(weights["norm.running_mean"], torch.zeros(4))  # in train mode
    assert found[0] == found[1]


def test_another_seed_or_step_drops_other_units(bench: Bench) -> None:
    def dropped(seed: int) -> torch.Tensor:
        with own_random_numbers(seed, CPU):
            return torch.nn.functional.dropout(torch.ones(64), 0.5)

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(9),
        lambda: torch.randn(9),
        lambda: torch.randint(100, (9,)),
        lambda: torch.randint(5, 100, (9,)),
        lambda: torch.randperm(9),
        lambda: torch.empty(9).normal_(),
        lambda: torch.bernoulli(torch.full((9,), 0.5)),
        lambda: torch.rand_like(torch.ones(9)),
        lambda: torch.native_dropout(torch.ones(64), 0.5, True)[0],
        lambda: torch.multinomial(torch.ones(9), 4),
    ],
)
def test_whatever_draws_draws_from_the_stream_of_its_own(draw: Any) -> None:
    before = torch.random.get_rng_state()
    with own_random_numbers(5, CPU):
        first, second = draw(), draw()
    torch.manual_seed(99)
    with own_random_numbers(5, CPU):
        again = draw()
    torch.random.set_rng_state(before)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_the_weights_alone_score(bench: Bench) -> None:
    hand_out(bench, 0, dict(digits(1).columns))
    training = begin("classification", "small_cnn", SMALL, learning_rate=0.01)
    trained, weights = after(bench, training)
    ref = ModelRef("small_cnn", json.dumps(SMALL, sort_keys=True), trained.weights, trained.weights_bytes)
    module = built(bench, training)
    module.load_state_dict(weights)
    found = bench.engine.losses(models(ref, None), digits(4)).learner
    assert found is not None
    wanted = task_named("classification").loss(module, tensors(digits(4).columns)).detach()
    assert torch.allclose(torch.from_numpy(found), wanted, rtol=1e-5)
    assert bench.engine.loaded() == (ref,)


def test_a_block_that_is_not_in_the_journal_is_told(bench: Bench) -> None:
    with pytest.raises(FileNotFoundError):
        after(bench, begin("classification", "small_cnn", SMALL))


def test_a_model_that_cannot_train_on_a_sub_batch_says_which(bench: Bench) -> None:
    hand_out(bench, 0, floats(1, rows=1))
    with pytest.raises(FailedPreconditionError, match="cannot be trained on step 0: Expected more than 1 value per"):
        after(bench, begin("classification", "own", {}))
