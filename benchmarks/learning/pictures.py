"""One picture an experiment: how good each arm is, over updates and over all operations that it cost."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.learning.measures import SHARES
from benchmarks.learning.verdict import Rung, Rungs

Arms = Mapping[str, Sequence[Rungs]]
"""Arm → its runs by seed."""

_COLOURS = ("#6b7280", "#0f62fe", "#d9480f", "#2b8a3e", "#9c36b5", "#0b7285", "#e67700", "#c2255c", "#364fc7")
_INK = "#1f2937"


def save(title: str, quality: str, updates: int, arms: Arms, path: Path) -> None:
    """Draws an experiment into a PNG, making its folder.

    Points are runs, each trained for its own budget; lines join the means over seeds.

    Args:
        title: the question.
        quality: what "better" is; a share is shown in per cent.
        updates: the full budget.
        arms: the control first, whose colour is grey.
        path: of the picture.
    """
    # On a machine's first picture matplotlib builds a font cache and says so.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure = Figure(figsize=(10, 4.2), dpi=130, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    control = next(iter(arms.values()))
    full_flops = statistics.fmean(rungs[1.0].flops for rungs in control)
    target = statistics.fmean(rungs[1.0].quality for rungs in control)
    for (name, by_seed), colour in zip(arms.items(), _COLOURS, strict=False):
        _draw(left, name, by_seed, colour, lambda budget, _: budget * updates)
        _draw(right, name, by_seed, colour, lambda _, rung: rung.flops / full_flops)
    for axes, label in ((left, "learner updates"), (right, "operations, everything charged, of uniform's")):
        axes.axhline(target, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel(label, color=_INK)
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_INK)
    if quality in SHARES:
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    left.set_ylabel(quality.replace("_", " "), color=_INK)
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    left.legend(loc="lower right", frameon=False)
    figure.suptitle(title, color=_INK, fontsize=11, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _draw(axes: Axes, name: str, by_seed: Sequence[Rungs], colour: str, where: Callable[[float, Rung], float]) -> None:
    budgets = sorted(by_seed[0])
    for rungs in by_seed:
        points = [(where(budget, rungs[budget]), rungs[budget].quality) for budget in budgets]
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=3.5, alpha=0.55)
    means = [
        (
            statistics.fmean(where(budget, rungs[budget]) for rungs in by_seed),
            statistics.fmean(rungs[budget].quality for rungs in by_seed),
        )
        for budget in budgets
    ]
    axes.plot(*zip(*means, strict=True), color=colour, linewidth=2, label=name)
