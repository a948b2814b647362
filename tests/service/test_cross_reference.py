"""Two references, each trained on one half of the data: every candidate is scored by the one that did not see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from preceptor import Run, SelectionClient
from preceptor.errors import (
    InvalidRunError,
    InvalidSuperBatchError,
    InvalidWeightsError,
    ReferenceFrozenError,
    WeightsMissingError,
)
from preceptor.folds import folds_of
from preceptor_service.app import start_service
from preceptor_service.cli.main import app
from tests.naive.selection import select as naive_select
from tests.reference.examples import IMAGES, arrays, write
from tests.service import digits
from tests.service.conftest import Control, Store, config, target_of

LEARNER, FOLD_0, FOLD_1 = digits.weights(1), digits.weights(2), digits.weights(3)
IDS = np.arange(1000, 1032)


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


@pytest.fixture
def run(client: SelectionClient, run_id: str) -> Run:
    return client.create_run(digits.spec(run_id, cross_reference=True))


@pytest.fixture
def ready(run: Run) -> Run:
    run.push_reference(FOLD_0, fold=0)
    run.push_reference(FOLD_1, fold=1)
    run.push_weights(LEARNER, step=0)
    return run


def unseen_losses(batch: dict[str, Any], example_id: Any) -> list[float]:
    """Of each candidate under the reference that was trained on the other half."""
    by_fold_0, by_fold_1 = digits.losses(FOLD_0, batch), digits.losses(FOLD_1, batch)
    return [
        by_fold_1[position] if fold == 0 else by_fold_0[position] for position, fold in enumerate(folds_of(example_id))
    ]


@pytest.mark.parametrize("example_id", [IDS, [f"image-{number}" for number in IDS]], ids=["numbers", "texts"])
def test_each_candidate_is_scored_by_the_reference_that_did_not_see_it(ready: Run, example_id: Any) -> None:
    batch = digits.candidates(5)
    scores = ready.score(batch, example_id=example_id)
    assert scores.reference_losses is not None
    assert set(folds_of(example_id)) == {0, 1}
    assert scores.reference_losses.tolist() == pytest.approx(unseen_losses(batch, example_id), rel=1e-4, abs=1e-5)
    for step in (0, 1):
        batch = digits.candidates(step)
        selection = ready.select(batch, sub_batch_size=9, step=step, example_id=example_id)
        assert selection.indices.tolist() == naive_select(
            ready.spec,
            learner_losses=digits.losses(LEARNER, batch),
            reference_losses=unseen_losses(batch, example_id),
            count=9,
            step=step,
        )


def test_without_example_ids_nobody_knows_who_saw_what(ready: Run) -> None:
    with pytest.raises(InvalidSuperBatchError, match="no example_id, and this run has two references"):
        ready.select(digits.candidates(0), sub_batch_size=5, step=0)
    assert len(ready.select(digits.candidates(0), sub_batch_size=5, step=0, example_id=IDS).indices) == 5


def test_both_references_must_be_there_before_anything_is_scored(run: Run) -> None:
    run.push_weights(LEARNER, step=0)
    for fold, state in ((0, FOLD_0), (1, FOLD_1)):
        with pytest.raises(WeightsMissingError, match=rf"no reference of fold {fold}; call .*fold={fold}"):
            run.select(digits.candidates(0), sub_batch_size=5, step=0, example_id=IDS)
        run.push_reference(state, fold=fold)
    assert len(run.select(digits.candidates(0), sub_batch_size=5, step=0, example_id=IDS).indices) == 5


def test_another_gateway_finds_both_in_the_store(ready: Run, service_store: Store) -> None:
    other = start_service(config(service_store.path))
    try:
        with SelectionClient(target_of(other)) as client:
            found = client.get_run(ready.run_id).score(digits.candidates(0), example_id=IDS)
    finally:
        other.stop()
    assert found.scores.tolist() == ready.score(digits.candidates(0), example_id=IDS).scores.tolist()


def test_each_reference_is_frozen_and_known_by_its_digest(ready: Run) -> None:
    again = ready.push_reference(FOLD_1, fold=1)
    assert ready.status().reference_fold_1_digest == again.digest != ready.status().reference_digest
    for fold, other in ((0, FOLD_1), (1, FOLD_0)):
        with pytest.raises(ReferenceFrozenError):
            ready.push_reference(other, fold=fold)


@pytest.mark.parametrize(
    ("fold", "complaint"),
    [(None, "has two references; push each with fold=0 or fold=1"), (2, "fold is 2; it is 0 or 1"), (-1, "fold is -1")],
)
def test_a_fold_that_is_missing_or_wrong_is_refused(run: Run, fold: int | None, complaint: str) -> None:
    with pytest.raises(InvalidWeightsError, match=complaint):
        run.push_reference(FOLD_0, fold=fold)
    assert run.status().reference_digest is None


def test_one_reference_has_no_fold(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(digits.spec(run_id))
    with pytest.raises(InvalidWeightsError, match="fold is 0; only references of a run with cross_reference have one"):
        run.push_reference(FOLD_0, fold=0)
    assert run.push_reference(FOLD_0).version == 1


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"score": "hard_learner"}, "cross_reference is set, and score 'hard_learner' reads no reference"),
        ({"reference_digest": "sha256:" + "0" * 64}, "cross_reference is set together with reference_digest"),
    ],
    ids=["no reference", "a digest"],
)
def test_settings_that_do_not_go_together_are_refused(
    client: SelectionClient, run_id: str, settings: dict[str, str], complaint: str
) -> None:
    with pytest.raises(InvalidRunError, match=complaint):
        client.create_run(digits.spec(run_id, cross_reference=True, **settings))


def test_halves_that_train_reference_trained_on_are_each_scored_by_the_other(
    client: SelectionClient, run_id: str, tmp_path: Path
) -> None:
    examples, ids = arrays(IMAGES, 80), [f"image-{number}" for number in range(80)]
    write(tmp_path / "pool.parquet", examples, example_id=ids)
    run = client.create_run(digits.spec(run_id, score="easy_reference", cross_reference=True))
    settings = ("--model-config", json.dumps(IMAGES.config), "--epochs", "2", "--hold-out", "0", "--threads", "1")
    states = []
    for fold in (0, 1):
        out = tmp_path / f"fold-{fold}"
        arguments = ["train-reference", str(out), "--data", str(tmp_path / "pool.parquet"), "--fold", str(fold)]
        ran = CliRunner().invoke(app, [*arguments, *settings])
        assert ran.exit_code == 0, ran.output
        card = json.loads((out / "card.json").read_text())
        assert (card["data"]["fold"], card["data"]["rows"]) == (fold, int((folds_of(ids) == fold).sum()))
        states.append(load_file(out / "reference.safetensors"))
        with pytest.raises(InvalidWeightsError, match=f"trained on fold {fold} of the data, and it is pushed with"):
            run.push_reference(states[fold], fold=1 - fold, card=out / "card.json")
        run.push_reference(states[fold], fold=fold, card=out / "card.json")

    found = run.score(examples, example_id=ids).reference_losses
    assert found is not None
    unseen = [digits.losses(state, examples) for state in states[::-1]]
    expected = [unseen[fold][row] for row, fold in enumerate(folds_of(ids))]
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found.tolist() != pytest.approx(digits.losses(states[0], examples), rel=1e-4, abs=1e-5)
