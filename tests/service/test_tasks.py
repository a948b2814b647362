"""Images with captions, and sequences, through a real service: scored, selected and refused as their task says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from preceptor import Run, SelectionClient
from preceptor.errors import InvalidRunError, InvalidSuperBatchError, NonFiniteScoresError
from preceptor.torch import SelectingLoader
from preceptor_service.models import ArchitectureRegistry
from tests.service.tasks import MISFITS, TEXT_TASKS, TextTask, is_finite


@pytest.fixture(params=sorted(TEXT_TASKS))
def task(request: pytest.FixtureRequest) -> TextTask:
    found: TextTask = TEXT_TASKS[request.param]
    return found


@pytest.fixture
def ready(client: SelectionClient, task: TextTask, run_id: str) -> Run:
    run = client.create_run(task.spec(run_id, seed=5))
    run.push_reference(task.weights(2))
    run.push_weights(task.weights(1), step=0)
    return run


def test_the_service_selects_what_a_naive_loop_selects(task: TextTask, ready: Run) -> None:
    for step in (1, 2):
        batch = task.candidates(step)
        selection = ready.select(batch, sub_batch_size=12, step=step)
        assert selection.indices.tolist() == task.expected(
            ready.spec, batch, task.weights(1), task.weights(2), count=12, step=step
        )


def test_losses_are_those_of_the_naive_loop(task: TextTask, ready: Run) -> None:
    batch = task.candidates(7)

    scores = ready.score(batch)

    assert scores.learner_losses is not None
    assert scores.learner_losses.tolist() == pytest.approx(
        task.losses(task.weights(1), batch), rel=2e-6, abs=1e-6, nan_ok=True
    )


def test_a_text_without_tokens_is_never_selected_and_counted(task: TextTask, ready: Run) -> None:
    batch = task.candidates(1)
    empty = is_finite(task.losses(task.weights(1), batch)).index(False)

    selection = ready.select(batch, sub_batch_size=39, step=1)

    assert sorted(selection.indices.tolist()) == [row for row in range(40) if row != empty]
    assert selection.non_finite_count == 1
    with pytest.raises(NonFiniteScoresError):
        ready.select(batch, sub_batch_size=40, step=2)


@pytest.mark.parametrize(("change", "text"), MISFITS.values(), ids=MISFITS.keys())
def test_a_super_batch_that_does_not_fit_is_refused_by_name(
    task: TextTask, ready: Run, change: Callable[[dict[str, Any]], dict[str, Any]], text: str
) -> None:
    with pytest.raises(InvalidSuperBatchError, match=text):
        ready.select(change(task.candidates(0)), sub_batch_size=4, step=1)
    assert len(ready.select(task.candidates(0), sub_batch_size=4, step=1).indices) == 4


def test_images_and_captions_of_unequal_number_are_refused(client: SelectionClient, run_id: str) -> None:
    task = TEXT_TASKS["image_text"]
    run = client.create_run(task.spec(run_id))
    batch = task.candidates(0)

    with pytest.raises(ValueError, match=r"columns differ in rows: \{'image': 39, 'input_ids': 40"):
        run.select({**batch, "image": batch["image"][:-1]}, sub_batch_size=4, step=1)


def test_a_loader_yields_the_selected_rows_of_every_column(task: TextTask, ready: Run) -> None:
    super_batches: list[dict[str, Any]] = [
        {name: torch.from_numpy(value) for name, value in task.candidates(step).items()} | {"text": [str(step)] * 40}
        for step in range(3)
    ]
    loader = SelectingLoader(super_batches, ready, sub_batch_size=10)

    for step, sub_batch in enumerate(loader):
        selection = loader.last_selection
        assert selection is not None
        assert sub_batch["text"] == [str(step)] * 10
        for name in ready.columns:
            assert torch.equal(sub_batch[name], super_batches[step][name][selection.indices])


def test_a_reference_of_another_architecture_may_score_the_same_pairs(client: SelectionClient, run_id: str) -> None:
    task = TEXT_TASKS["image_text"]
    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    settings: dict[str, Any] = {
        **{prefix + name: value for prefix in ("text_", "vision_") for name, value in tower.items()},
        "model_type": "siglip", "in_channels": 1, "image_size": 8, "vision_patch_size": 4, "vocab_size": 20,
        "text_max_position_embeddings": 6, "text_projection_size": 8,
    }  # fmt: skip
    spec = task.spec(
        run_id, score="easy_reference", reference_model="image_text_model", reference_model_config=settings
    )
    run = client.create_run(spec)
    run.push_reference(ArchitectureRegistry().build("image_text_model", settings).state_dict())
    batch = task.candidates(3)

    scores = run.score(batch)

    assert np.isfinite(scores.scores).sum() == 39
    assert scores.scores[np.isfinite(scores.scores)].max() <= 1
    with pytest.raises(InvalidRunError, match="read different super-batches"):
        client.create_run(
            task.spec(
                f"{run_id}-b", reference_model="image_text_model", reference_model_config={**settings, "vocab_size": 21}
            )
        )
