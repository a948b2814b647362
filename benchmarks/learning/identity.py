"""`identity`: whether learnability with selector top_k is RHO-LOSS: the same selections from the same tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning import rho
from benchmarks.learning.data import build
from benchmarks.learning.data.parts import rows_of, take
from benchmarks.learning.experiments import EXPERIMENTS
from benchmarks.learning.ladder import made_on
from benchmarks.learning.references import reference_key, trained
from benchmarks.learning.service import client_of_new_service
from benchmarks.learning.settings import Training
from benchmarks.learning.trainee import REGISTRY, Trainee, order
from preceptor import RunSpec
from preceptor_service.reference.objectives import objective_of

FOUND = Path(__file__).resolve().parent / "results" / "identity.json"

_SUPER_BATCHES = 100


def compare(settings: Training, super_batches: int, work: Path) -> dict[str, Any]:
    """Trains an online model on what the service selects, and selects by RHO's own rule each time beside it.

    Returns:
        `super_batches`, how many of them gave `equal_sets` and `equal_orders`, and `largest_difference` of two scores
        of one candidate.

    Raises:
        DataMissingError, PreceptorError: as `training.train`.
    """
    torch.set_num_threads(1)
    selection = settings.selection
    if selection is None or selection.online is None or selection.reference is None:
        raise ValueError("RHO's rule needs an online model and a reference; name a selected arm that has both")
    parts = build(settings.data, settings.seed)
    key = reference_key(settings, selection.reference)
    reference = trained(key, parts, work)
    holdout_model = REGISTRY.build(selection.reference.model.architecture, selection.reference.model.config)
    holdout_model.load_state_dict(reference.state)
    online = Trainee(
        selection.online, objective_of(settings.task, settings.contrast), super_batches, selection.online_learning_rate,
        settings.seed + 1_000,
    )  # fmt: skip
    spec = RunSpec(
        "identity", selection.online.architecture, dict(selection.online.config), score="learnability", selector="top_k"
    )
    size = selection.ratio * settings.sub_batch_size
    found = {"super_batches": super_batches, "equal_sets": 0, "equal_orders": 0, "largest_difference": 0.0}
    with client_of_new_service(size, None) as client:
        run = client.create_run(spec)
        run.push_reference(reference.state)
        for step, rows in enumerate(order(rows_of(parts.pool), size, super_batches, settings.seed)):
            batch = take(parts.pool, rows)
            run.push_weights(online.model.state_dict(), step=step)
            columns = {name: batch[name] for name in run.columns}
            ours = run.select(columns, settings.sub_batch_size, step=step)
            irreducible = rho.irreducible_losses(holdout_model, batch["image"], batch["label"])
            theirs = rho.selected(
                online.model, batch["image"], batch["label"], irreducible, settings.sub_batch_size
            ).numpy()
            scores = rho.irreducible_losses(online.model, batch["image"], batch["label"]) - irreducible
            found["equal_orders"] += int((ours.indices == theirs).all())
            found["equal_sets"] += int(set(ours.indices.tolist()) == set(theirs.tolist()))
            difference = float((torch.from_numpy(ours.scores.copy()) - scores).abs().max())
            found["largest_difference"] = max(found["largest_difference"], difference)
            online.update(take(batch, torch.from_numpy(ours.indices.copy())))
    return found


def run(is_smoke: bool, work: Path) -> dict[str, Any]:
    """Compares on the data, models and sizes of `noisy-labels`, and keeps what came of it unless it is a smoke run."""
    experiment = EXPERIMENTS["noisy-labels"]
    if is_smoke:
        return compare(experiment.smoke().training("learnability", 1.0, 0), 3, work)
    found = compare(experiment.training("learnability", 1.0, 0), _SUPER_BATCHES, work) | {"made_on": made_on()}
    FOUND.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(found: dict[str, Any]) -> str:
    """Returns what was found, in Markdown."""
    count = found["super_batches"]
    return "\n".join(
        (
            "| super-batches | same sub-batch | in the same order | largest difference of two scores |",
            "|---|---|---|---|",
            f"| {count} | {found['equal_sets']} | {found['equal_orders']} | {found['largest_difference']:.1e} |",
        )
    )
