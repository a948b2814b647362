"""The demo's results in words and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from examples.demo.training import History
from preceptor_service.cost import relative_compute

if TYPE_CHECKING:
    from examples.demo.comparison import Comparison

Row = tuple[str, str, str]


def rows(found: Comparison) -> list[Row]:
    """Returns (quantity, value of the uniform arm, value of the learnability arm) of each row."""
    target = found.histories["uniform"].best_accuracy
    return [
        (f"updates to {target:.1%} (uniform's best)", *_updates(found)),
        ("best test accuracy", *_both(found, lambda arm: f"{arm.best_accuracy:.1%}")),
        (f"final test accuracy, {found.recipe.updates} updates", *_both(found, lambda arm: f"{arm.accuracy[-1]:.1%}")),
        ("wrong labels among those trained on", *_both(found, lambda arm: f"{_mean(arm.corrupt_share):.0%}")),
        ("compute to get there, all charged¹", "100%", _compute(found, charge_training=True)),
        ("… without the reference's training", "100%", _compute(found, charge_training=False)),
        ("exposed wait per update²", *_both(found, lambda arm: _per_update(arm, arm.selection_wait_s))),
        ("wait for pushes, per update", *_both(found, lambda arm: _per_update(arm, arm.push_wait_s))),
        ("candidates per second³", *_both(found, lambda arm: f"{arm.candidates / arm.training_s:,.0f}")),
    ]


def table(found: Comparison) -> Table:
    """Returns the rows as a table."""
    shown = Table(title=f"{found.data}, seed {found.seed}", box=box.SIMPLE_HEAD, title_justify="left")
    shown.add_column("")
    shown.add_column("uniform", justify="right")
    shown.add_column("learnability", justify="right")
    for row in rows(found):
        shown.add_row(*row)
    return shown


def footnotes(found: Comparison) -> str:
    """Returns what the rows count, and what speaks against reading too much into them."""
    recipe, share = found.recipe, found.online_flops_share
    notes = [
        f"Updates until a test, every {recipe.evaluate_every}, first gave that accuracy; later ones may fall below it.",
        f"¹ FLOPs: learner forward and backward on {recipe.sub_batch_size}; online model ({share:.1%} of the learner) "
        f"trained on the same {recipe.sub_batch_size}; online model and reference ({share:.1%}) forward on "
        f"{recipe.super_batch_size}; the reference's own training, {recipe.reference_updates} updates.",
        "² waiting for a selection, encoding and sending included.",
        "³ while training, on this machine's cores together with the learner.",
        f"The reference alone has {found.reference_accuracy:.1%}. One seed is an anecdote: try --seed 1.",
    ]
    fallbacks = sum(arm.fallbacks for arm in found.histories.values())
    if fallbacks:
        notes.append(f"{fallbacks} selections fell back to uniform.")
    return "\n".join(notes)


def _updates(found: Comparison) -> tuple[str, str]:
    needed, selected = _needed(found)
    if selected is None:
        return f"{needed}", f"never in {found.recipe.updates}"
    saved = 1 - selected / needed
    return f"{needed}", f"{selected} ({abs(saved):.0%} {'fewer' if saved >= 0 else 'more'})"


def _compute(found: Comparison, charge_training: bool) -> str:
    needed, selected = _needed(found)
    spent = found.recipe.updates if selected is None else selected
    compute = relative_compute(
        savings=1 - spent / needed,
        f_online=found.online_flops_share,
        f_reference=found.online_flops_share,
        ratio=found.recipe.ratio,
        charge_reference_training=found.recipe.reference_updates / needed if charge_training else 0.0,
    )
    return f"{compute:.0%}" if selected is not None else f"never; spent {compute:.0%}"


def _needed(found: Comparison) -> tuple[int, int | None]:
    """Returns the updates that uniform and learnability needed to uniform's best accuracy."""
    uniform = found.histories["uniform"]
    target = uniform.best_accuracy
    return uniform.evaluated_at[uniform.accuracy.index(target)], found.histories["learnability"].updates_to(target)


def _both(found: Comparison, shown: Callable[[History], str]) -> tuple[str, str]:
    return shown(found.histories["uniform"]), shown(found.histories["learnability"])


def _per_update(arm: History, seconds: float) -> str:
    return f"{1000 * seconds / len(arm.corrupt_share):.1f} ms"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
