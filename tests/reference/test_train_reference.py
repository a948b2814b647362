"""Training a reference: right, the same again whatever interrupts it, and never over something else."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import conv2d, cross_entropy, max_pool2d

from preceptor import Run, SelectionClient
from preceptor.errors import InvalidRunError
from preceptor_service.app import start_service
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference.dataset import Dataset
from preceptor_service.reference.errors import JobError
from preceptor_service.reference.output import CARD, WEIGHTS, Output
from preceptor_service.reference.train_job import Model, train_reference
from preceptor_service.reference.training import Recipe, Training, parted
from tests.naive.losses import small_cnn_losses
from tests.reference.examples import IMAGES, PAIRS, TEXTS, arrays
from tests.service import digits
from tests.service.conftest import config

RECIPE = Recipe(epochs=3, batch_rows=8, learning_rate=1e-2, weight_decay=0.01, seed=5, hold_out=0.2)
SIGMOID = Model(PAIRS.task, PAIRS.name, PAIRS.config, contrast="sigmoid")
MODELS = pytest.mark.parametrize("model", [IMAGES, PAIRS, SIGMOID, TEXTS], ids=["images", "pairs", "sigmoid", "texts"])


def train(directory: Path, model: Model = IMAGES, recipe: Recipe = RECIPE, **settings: Any) -> dict[str, Any] | None:
    rows = settings.pop("rows", 40)
    data = settings.pop("data", None) or Dataset(arrays(model, rows), rows)
    return train_reference(
        **{
            "model": model,
            "recipe": recipe,
            "data": data,
            "directory": directory,
            "registry": ArchitectureRegistry(),
            "device": "cpu",
            "checkpoint_interval_s": math.inf,
            "is_stopped": lambda: False,
            "watch": lambda training, loss: None,
            **settings,
        }
    )


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class After:
    """Says stop once, after so many updates of this process."""

    def __init__(self, updates: int) -> None:
        self._left = updates

    def __call__(self) -> bool:
        self._left -= 1
        return self._left == 0


def test_it_trains_as_a_plain_loop_does(tmp_path: Path) -> None:
    # All rows in one batch, so that their order cannot matter.
    recipe = Recipe(epochs=6, batch_rows=40, learning_rate=1e-2, weight_decay=0.1, seed=3, hold_out=0)
    train(tmp_path, recipe=recipe)

    examples = arrays(IMAGES, 40)
    labels = torch.from_numpy(examples["label"])
    start = ArchitectureRegistry().build(IMAGES.name, IMAGES.config, seed=3).state_dict()
    weights = {name: value.double().requires_grad_() for name, value in start.items()}
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second = dict(first)
    for update in range(1, 7):
        loss = cross_entropy(logits(weights, examples["image"]), labels)
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        rate = 1e-2 * math.cos(math.pi * (update - 1) / 12) ** 2
        for name, gradient in gradients.items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            step = first[name] / (1 - 0.9**update) / ((second[name] / (1 - 0.999**update)).sqrt() + 1e-8)
            weights[name] = (weights[name].detach() * (1 - rate * 0.1) - rate * step).requires_grad_()

    for name, value in load_file(tmp_path / WEIGHTS).items():
        torch.testing.assert_close(value.double(), weights[name].detach(), rtol=1e-3, atol=1e-5)


def logits(weights: dict[str, torch.Tensor], images: Any) -> torch.Tensor:
    hidden = torch.from_numpy(images).double() / 255
    for name in ("conv1", "conv2", "conv3"):
        hidden = conv2d(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).clamp(min=0)
        hidden = hidden if name == "conv3" else max_pool2d(hidden, 2)
    return hidden.mean(dim=(-1, -2)) @ weights["head.weight"].T + weights["head.bias"]


@MODELS
def test_it_learns_and_the_card_says_what_from_and_how_well(model: Model, tmp_path: Path) -> None:
    recipe = Recipe(epochs=40, batch_rows=16, learning_rate=2e-2, weight_decay=0.01, seed=1, hold_out=0.25)
    card = train(tmp_path, model, recipe, rows=64)

    assert card is not None
    assert sorted(files(tmp_path)) == [CARD, WEIGHTS]
    assert json.loads((tmp_path / CARD).read_text()) == card
    assert card["weights"]["digest"] == f"sha256:{hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()}"
    assert (card["task"], card["model"], card["model_config"]) == (model.task, model.name, model.config)
    assert card["data"] == {"digest": Dataset(arrays(model, 64), 64).digest(), "rows": 64, "trained_on": 48}
    assert card["hold_out"]["rows"] == 16
    assert card["training"]["updates"] == 40 * 3
    assert len(card["epochs"]) == 40
    assert card["epochs"][-1]["hold_out_loss"] == card["hold_out"]["loss"] < card["epochs"][0]["hold_out_loss"]
    assert card["epochs"][-1]["train_loss"] < card["epochs"][0]["train_loss"]
    if model.task != "image_text":  # of captions that are alike the first counts as the nearest
        assert card["hold_out"]["accuracy"] > card["epochs"][0]["hold_out_accuracy"]
    assert card["versions"]["torch"] == torch.__version__


def test_the_hold_out_is_measured_as_a_plain_loop_measures_it(tmp_path: Path) -> None:
    card = train(tmp_path)
    assert card is not None
    everything = arrays(IMAGES, 40)
    losses = small_cnn_losses(load_file(tmp_path / WEIGHTS), everything["image"], everything["label"])

    train_part, hold_out = parted(Dataset({**everything, "row": np.arange(40)}, 40), RECIPE)
    rows = hold_out.columns["row"].tolist()
    assert sorted([*rows, *train_part.columns["row"].tolist()]) == list(range(40))
    assert len(rows) == 8
    assert card["hold_out"]["loss"] == pytest.approx(sum(losses[row] for row in rows) / 8, rel=1e-5)


@MODELS
def test_the_same_seed_gives_the_same_bits_and_another_one_others(model: Model, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.manual_seed(ord(name))
        train(tmp_path / name, model, Recipe(**{**vars(RECIPE), "seed": seed}))

    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")[WEIGHTS] != files(tmp_path / "c")[WEIGHTS]


@MODELS
@pytest.mark.parametrize("stops", [(1,), (4,), (5, 1, 2)], ids=["early", "end of an epoch", "three times"])
def test_a_training_that_was_stopped_comes_to_the_same_bits(
    model: Model, stops: tuple[int, ...], tmp_path: Path
) -> None:
    train(tmp_path / "whole", model)
    for updates in stops:
        assert train(tmp_path / "stopped", model, is_stopped=After(updates)) is None
        assert sorted(files(tmp_path / "stopped")) == ["checkpoint.safetensors"]
    train(tmp_path / "stopped", model)

    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_training_leaves_torchs_random_state_and_settings_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    train(tmp_path, TEXTS)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.are_deterministic_algorithms_enabled() == before[1]


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    card = train(tmp_path)

    def fail(training: Training, loss: float | None) -> None:
        pytest.fail("it trains again")

    assert train(tmp_path, watch=fail) == card


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "under way"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seed", {"recipe": Recipe(**{**vars(RECIPE), "seed": 6})}),
        ("epochs", {"recipe": Recipe(**{**vars(RECIPE), "epochs": 4})}),
        ("model_config", {"model": Model(IMAGES.task, IMAGES.name, {**IMAGES.config, "width": 3})}),
        ("data", {"data": Dataset(arrays(IMAGES, 40, seed=9), 40)}),
        ("task", {"model": TEXTS}),
    ],
)
def test_the_output_of_another_training_is_refused_and_left(
    name: str, change: dict[str, Any], finished: bool, tmp_path: Path
) -> None:
    train(tmp_path, is_stopped=(lambda: False) if finished else After(2))
    before = files(tmp_path)

    with pytest.raises(JobError, match=f"holds another training: {name} is .* there and .* here"):
        train(tmp_path, **change)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("thesis.tex", "years of work", "holds 'thesis.tex', which is no reference"),
        (CARD, "{}", "is no card of ours"),
        ("checkpoint.safetensors", "half", "is no checkpoint of ours"),
    ],
)
def test_a_directory_with_something_else_is_refused(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(JobError, match=said) as caught:
        train(tmp_path)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == {name: content.encode()}


def test_weights_that_changed_beside_their_card_are_noticed(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-1] + b"?")

    with pytest.raises(JobError, match=f"is not what {CARD} names"):
        train(tmp_path)


def test_two_processes_do_not_train_into_one_directory(tmp_path: Path) -> None:
    with Output(tmp_path / "out", {}), pytest.raises(JobError, match="another process works in"):
        train(tmp_path / "out")
    assert train(tmp_path / "out") is not None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "--epochs is 0; it must be 1 or above"),
        ({"batch_rows": 0}, "--batch-rows is 0"),
        ({"learning_rate": math.nan}, "--learning-rate is nan; it must be above 0"),
        ({"weight_decay": -1.0}, "--weight-decay is -1.0"),
        ({"seed": -1}, "--seed is -1"),
        ({"hold_out": 1.0}, "--hold-out is 1.0; it must be 0 or above, and below 1"),
    ],
)
def test_recipes_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said):
        Recipe(**{**vars(RECIPE), **settings})


def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    empty = arrays(PAIRS, 10)
    empty["attention_mask"][[3, 7]] = 0
    single = arrays(TEXTS, 10)
    single["attention_mask"][4] = [1, 0, 1, 0]
    for model, settings, error, said in (
        (
            PAIRS,
            {"data": Dataset(empty, 10)},
            JobError,
            "2 of 10 rows have no loss, the first is row 3",
        ),
        (TEXTS, {"data": Dataset(single, 10)}, JobError, "1 of 10 rows have no loss, the first is row 4; a sequence"),
        (IMAGES, {"rows": 1}, JobError, "the data has 1 rows, of which --hold-out 0.2 keeps 1; none is left"),
        (Model("image_text", "small_cnn", IMAGES.config), {"data": Dataset({}, 0)}, InvalidRunError, "dual encoder"),
        (Model("poetry", "small_cnn", IMAGES.config), {"data": Dataset({}, 0)}, InvalidRunError, "task is 'poetry'"),
        (Model(PAIRS.task, PAIRS.name, PAIRS.config, "hinge"), {}, JobError, "--contrast is 'hinge'; choose one of"),
    ):
        with pytest.raises(error, match=said):
            train(tmp_path / "out", model, **settings)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_training_that_diverges_says_so_and_where(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"the training loss is (nan|inf) at update .*; lower --learning-rate"):
        train(tmp_path, recipe=Recipe(**{**vars(RECIPE), "learning_rate": 1e30}))
    assert not (tmp_path / WEIGHTS).exists()


def test_a_run_takes_the_reference_and_knows_it_by_the_digest_of_its_card(tmp_path: Path) -> None:
    card = train(tmp_path / "reference")
    assert card is not None
    service = start_service(config(tmp_path / "store"))
    try:
        with SelectionClient(f"127.0.0.1:{service.ports.grpc}") as client:
            run: Run = client.create_run(digits.spec("garments", score="easy_reference"))
            pushed = run.push_reference(load_file(tmp_path / "reference" / WEIGHTS))
            batch = digits.candidates(1)
            scores = run.score(batch)
    finally:
        service.stop()

    assert pushed.digest == card["weights"]["digest"]
    assert scores.reference_losses is not None
    expected = small_cnn_losses(load_file(tmp_path / "reference" / WEIGHTS), batch["image"], batch["label"])
    np.testing.assert_allclose(scores.reference_losses, expected, rtol=1e-5)
