"""One picture an experiment: what arms reach and cost, over their budgets or over what they differ in."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.learning.experiments import Axis
from benchmarks.learning.measures import SHARES
from benchmarks.learning.verdict import Rung, Rungs

Arms = Mapping[str, Sequence[Rungs]]
"""Arm → its runs by seed."""

_COLOURS = ("#6b7280", "#0f62fe", "#d9480f", "#2b8a3e", "#9c36b5", "#0b7285", "#e67700", "#c2255c", "#364fc7")
_INK = "#1f2937"
_DASHED: Mapping[str, Any] = {"linewidth": 1, "linestyle": (0, (4, 3))}


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
    figure = _blank(title)
    left, right = figure.subplots(1, 2, sharey=True)
    control = next(iter(arms.values()))
    full_flops = statistics.fmean(rungs[1.0].flops for rungs in control)
    target = statistics.fmean(rungs[1.0].quality for rungs in control)
    for (name, by_seed), colour in zip(arms.items(), _COLOURS, strict=False):
        _draw(left, name, by_seed, colour, lambda budget, _: budget * updates)
        _draw(right, name, by_seed, colour, lambda _, rung: rung.flops / full_flops)
    for axes, label in ((left, "learner updates"), (right, "operations, everything charged, of uniform's")):
        axes.axhline(target, color=_INK, **_DASHED)
        axes.set_xlim(left=0)
        _label(axes, label)
    _label_quality(left, quality)
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    left.legend(loc="best", frameon=False)
    _write(figure, path)


def save_sweep(
    title: str,
    quality: str,
    axis: Axis,
    control: Sequence[Rungs],
    arms: Mapping[float, Sequence[Rungs]],
    path: Path,
) -> None:
    """Draws an experiment whose arms differ in a number, into a PNG, making its folder.

    On the left how good each is, a line a budget, beside the control's at the same budget (dashed); on the right
    what it cost, of the control's full budget: filled where it is as good as that in every seed.

    Args:
        title: the question.
        quality: what "better" is; a share is shown in per cent.
        axis: what the arms differ in.
        control: its runs by seed.
        arms: number → runs by seed.
        path: of the picture.
    """
    figure = _blank(title)
    left, right = figure.subplots(1, 2)
    values = sorted(arms)
    for budget, colour in zip(sorted(control[0], reverse=True), _COLOURS[1:], strict=False):
        name = f"{budget:.0%} of the updates"
        for value in values:
            qualities = [rungs[budget].quality for rungs in arms[value]]
            left.plot([value] * len(qualities), qualities, "o", color=colour, markersize=3.5, alpha=0.55)
        means = [statistics.fmean(rungs[budget].quality for rungs in arms[value]) for value in values]
        left.plot(values, means, color=colour, linewidth=2)
        left.axhline(statistics.fmean(rungs[budget].quality for rungs in control), color=colour, **_DASHED)
        cost, is_as_good = {}, {}
        for value in values:
            pairs = [(rungs[budget], full[1.0]) for rungs, full in zip(arms[value], control, strict=True)]
            cost[value] = statistics.fmean(rung.flops / full.flops for rung, full in pairs)
            is_as_good[value] = all(rung.quality >= full.quality for rung, full in pairs)
        right.plot(values, list(cost.values()), color=colour, linewidth=2, label=name)
        for value in values:
            fill: Literal["full", "none"] = "full" if is_as_good[value] else "none"
            right.plot(value, cost[value], "o", color=colour, markersize=7, fillstyle=fill)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value * 100:.2g} %" if axis.is_share else f"{value:g}" for value in values])
        axes.minorticks_off()
        _label(axes, axis.label)
    right.axhline(1.0, color=_INK, **_DASHED)
    right.set_ylim(0, right.get_ylim()[1] * 1.2)  # room for the legend
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_ylabel("operations, of uniform's; filled: as good", color=_INK)
    _label_quality(left, quality)
    left.set_ylabel(f"{left.get_ylabel()}; dashed: uniform's")
    right.legend(loc="upper left", frameon=False)
    _write(figure, path)


def _blank(title: str) -> Figure:
    # On a machine's first picture matplotlib builds a font cache and says so.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure = Figure(figsize=(10, 4.2), dpi=130, facecolor="white", layout="constrained")
    figure.suptitle(title, color=_INK, fontsize=11, x=0.01, ha="left")
    return figure


def _label(axes: Axes, label: str) -> None:
    axes.set_xlabel(label, color=_INK)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)


def _label_quality(axes: Axes, quality: str) -> None:
    if quality in SHARES:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.set_ylabel(quality.replace("_", " "), color=_INK)


def _write(figure: Figure, path: Path) -> None:
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
