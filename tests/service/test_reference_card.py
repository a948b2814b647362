"""A reference is used as it was trained: its card, and the runs that hold it, say what weights alone do not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from preceptor import Run, RunSpec, SelectionClient
from preceptor.errors import InvalidMessageError, InvalidWeightsError
from preceptor.reference_card import card_to_proto
from preceptor.v1 import weights_pb2
from preceptor.weights import push
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference.dataset import Dataset
from preceptor_service.reference.output import CARD, WEIGHTS
from preceptor_service.reference.train_job import Model, train_reference
from preceptor_service.reference.training import Recipe
from tests.reference.examples import IMAGES, PAIRS, arrays
from tests.service import digits

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of a reference of images and one of pairs, as train-reference writes them."""
    found = {}
    for model in (IMAGES, PAIRS):
        found[model.task] = tmp_path_factory.mktemp(model.task) / "reference"
        recipe = Recipe(epochs=1, batch_rows=8, learning_rate=1e-3, weight_decay=0.0, seed=0, hold_out=0.0)
        train_reference(
            Model(model.task, model.name, model.config), recipe, Dataset(arrays(model, 16), 16), found[model.task],
            ArchitectureRegistry(), "cpu", math.inf, lambda: False, lambda training, loss: None,
        )  # fmt: skip
    return found


@pytest.fixture
def reference(trained: dict[str, Path]) -> Path:
    return trained[IMAGES.task]


def spec(run_id: str, of: Model = IMAGES, **settings: Any) -> RunSpec:
    return RunSpec(**{"run_id": run_id, "task": of.task, "model": of.name, "model_config": of.config, **settings})


def card_of(directory: Path, change: Change = lambda card: None) -> dict[str, Any]:
    card = json.loads((directory / CARD).read_text())
    change(card)
    return dict(card)


def pushed(run: Run, directory: Path, card: Any) -> str:
    return run.push_reference(load_file(directory / WEIGHTS), card=card).digest


@pytest.mark.parametrize("task", [IMAGES.task, PAIRS.task])
@pytest.mark.parametrize("as_path", [True, False], ids=["path", "dict"])
def test_a_reference_with_its_card_is_taken_by_a_run_that_uses_it_so(
    task: str, as_path: bool, client: SelectionClient, run_id: str, trained: dict[str, Path]
) -> None:
    model, directory = (IMAGES if task == IMAGES.task else PAIRS), trained[task]
    # What is left out has its default, and one number for all channels is one for each.
    config = {**model.config, "mean": [0.0], "std": 1}
    run = client.create_run(spec(run_id, model, model_config=config))
    assert pushed(run, directory, directory / CARD if as_path else card_of(directory)) == run.status().reference_digest


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_config": {**IMAGES.config, "mean": 0.5}}, r"says preprocessing.mean \[0\], and run .* with \[0.5\]"),
        ({"model_config": {**IMAGES.config, "std": 0.25}}, r"says preprocessing.std \[1\], and run .* with \[0.25\]"),
        ({"model_config": {**IMAGES.config, "num_classes": 5}}, "says model_config.num_classes 4, and run .* with 5"),
        ({"model_config": {**IMAGES.config, "width": 3}}, "says model_config.width 2, and run .* with 3"),
        (
            {"reference_model": "small_cnn", "reference_model_config": {**IMAGES.config, "mean": 0.5}},
            r"says preprocessing.mean \[0\], and run .* with \[0.5\]",
        ),
        (
            {"model": "gated", "model_config": {"gate": "card"}, "score": "learnability"},
            "says model 'small_cnn', and run .* with 'gated'",
        ),
    ],
    ids=["mean", "std", "classes", "width", "the reference's own", "architecture"],
)
def test_a_run_that_would_use_it_otherwise_refuses_it(
    settings: dict[str, Any], said: str, client: SelectionClient, run_id: str, reference: Path
) -> None:
    run = client.create_run(spec(run_id, **settings))
    with pytest.raises(InvalidWeightsError) as caught:
        pushed(run, reference, reference / CARD)
    caught.match(f"the reference's card .*{said}.*; create a run with task, reference_model")
    assert caught.value.code == "INVALID_ARGUMENT"
    assert run.status().reference_digest is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card: card["preprocessing"]["image"].update(mean=[0.5]), r"says preprocessing.mean \[0.5\]"),
        (lambda card: card["preprocessing"].pop("image"), "the reference's card says"),
        (lambda card: card["preprocessing"]["columns"][0].update(shape=[1, 9, 9]), "says preprocessing.columns"),
        (lambda card: card.update(task="image_text"), "says task 'image_text'"),
        (
            lambda card: card.update(model="unheard_of"),
            "card cannot be used: model is 'unheard_of'; this service knows",
        ),
        (
            lambda card: card["weights"].update(digest="sha256:0"),
            "card is of the weights sha256:0, and these are sha256",
        ),
        (
            lambda card: card["data"].update(fold=1),
            "trained on fold 1 of the data, and it is pushed without fold; push",
        ),
    ],
    ids=["mean", "no image", "shape", "task", "model", "weights", "fold"],
)
def test_a_card_of_something_else_is_refused_and_the_right_one_taken_after_it(
    change: Change, said: str, client: SelectionClient, run_id: str, reference: Path
) -> None:
    run = client.create_run(spec(run_id))
    with pytest.raises(InvalidWeightsError, match=said):
        pushed(run, reference, card_of(reference, change))
    assert run.status().reference_digest is None
    pushed(run, reference, reference / CARD)


def test_the_fold_on_the_card_is_the_fold_that_it_is_pushed_as(
    client: SelectionClient, run_id: str, reference: Path
) -> None:
    run = client.create_run(spec(run_id, cross_reference=True))
    card = card_of(reference, lambda card: card["data"].update(fold=1))
    state = load_file(reference / WEIGHTS)
    with pytest.raises(
        InvalidWeightsError, match="trained on fold 1 of the data, and it is pushed with fold=0; push it "
    ):
        run.push_reference(state, fold=0, card=card)
    assert run.push_reference(state, fold=1, card=card).version == 1


@pytest.mark.parametrize("card", [{}, {"weights": 3}, {"preprocessing": {"columns": 1}}, [1]])
def test_what_is_no_card_is_refused_before_anything_is_sent(
    card: Any, client: SelectionClient, run_id: str, tmp_path: Path
) -> None:
    run = client.create_run(spec(run_id))
    (tmp_path / "card.json").write_text(json.dumps(card))
    given: Any
    for given in (tmp_path / "card.json", *([card] if isinstance(card, dict) else [])):
        with pytest.raises(ValueError, match="is no card of a reference"):
            run.push_reference(digits.weights(1), card=given)


def test_a_learner_has_no_card(client: SelectionClient, run_id: str, reference: Path) -> None:
    run = client.create_run(spec(run_id))
    learner, card = weights_pb2.WEIGHTS_ROLE_LEARNER, card_to_proto(reference / CARD)
    with pytest.raises(InvalidMessageError, match="a card came with a learner"):
        push(run._connection, run_id, learner, digits.weights(1), 0, False, 10.0, card=card)


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ({"model_config": {**digits.MODEL, "mean": 0.5, "std": 0.25}}, "preprocessing.mean, preprocessing.std"),
        (
            {"reference_model": "small_cnn", "reference_model_config": {**digits.MODEL, "mean": 0.5}},
            "preprocessing.mean",
        ),
    ],
    ids=["model", "reference_model"],
)
def test_a_reference_of_another_run_is_adopted_as_that_run_uses_it_and_not_otherwise(
    settings: dict[str, Any], differs: str, client: SelectionClient, run_id: str
) -> None:
    state = digits.weights(10_000 + int(run_id.rpartition("-")[2]))  # that no other test pushes
    first = client.create_run(digits.spec(run_id, model_config={**digits.MODEL, "mean": 0.0}))
    digest = first.push_reference(state).digest
    adopted = client.create_run(digits.spec(f"{run_id}-b", reference_digest=digest))  # 0 is the default
    assert adopted.status().reference_digest == digest
    with pytest.raises(InvalidWeightsError) as caught:
        client.create_run(digits.spec(f"{run_id}-c", reference_digest=digest, **settings))
    assert f"is used otherwise by every run that holds it: {differs} differ; " in str(caught.value)
    assert f"{run_id}-c" not in [run.spec.run_id for run in client.list_runs()]

    other = client.create_run(digits.spec(f"{run_id}-d", **settings))
    other.push_reference(state)  # said by whoever pushes it
    assert client.create_run(digits.spec(f"{run_id}-c", reference_digest=digest, **settings)).status().reference_digest
