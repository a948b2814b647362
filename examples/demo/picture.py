"""The demo's results as a picture: test accuracy, and the share of wrong labels selected, over updates."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from examples.demo.training import History

if TYPE_CHECKING:
    from examples.demo.comparison import Comparison

_COLOURS = {"uniform": "#6b7280", "learnability": "#0f62fe"}
_INK = "#1f2937"
_WINDOW = 20
"""Updates over which the share of wrong labels is averaged."""


def save(found: Comparison, path: Path) -> Path:
    """Draws the picture into a PNG, making its folder, and returns the path."""
    # On a machine's first picture matplotlib builds a font cache and says so.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure = Figure(figsize=(10, 4.2), dpi=160, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_accuracy(left, found)
    _draw_wrong_labels(right, found)
    figure.suptitle(
        f"{found.data}, half of the pool's labels wrong: the same learner on what is selected  (seed {found.seed})",
        color=_INK, fontsize=12, x=0.01, ha="left",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def _draw_accuracy(axes: Axes, found: Comparison) -> None:
    target = found.histories["uniform"].best_accuracy
    for name, arm in found.histories.items():
        axes.plot(arm.evaluated_at, arm.accuracy, color=_COLOURS[name], label=name, linewidth=2)
    axes.axhline(target, color=_INK, linewidth=1, linestyle=(0, (4, 3)), label=f"uniform's best, {target:.1%}")
    for name, arm in found.histories.items():
        _mark_arrival(axes, arm, target, _COLOURS[name])
    lowest = min(min(arm.accuracy[len(arm.accuracy) // 4 :]) for arm in found.histories.values())
    axes.set_ylim(bottom=max(0.0, lowest - 0.15), top=1.0)
    _dress(axes, "Test accuracy", found.recipe.updates)
    axes.legend(loc="lower right", frameon=False)


def _mark_arrival(axes: Axes, arm: History, target: float, colour: str) -> None:
    reached = arm.updates_to(target)
    if reached is None:
        return
    axes.plot([reached], [target], "o", color=colour, markersize=7, markeredgecolor="white", zorder=5)
    axes.annotate(
        f"{reached}", (reached, target), xytext=(-6, 7), textcoords="offset points", ha="right", color=colour, weight="bold"
    )


def _draw_wrong_labels(axes: Axes, found: Comparison) -> None:
    for name, arm in found.histories.items():
        share = smoothed(arm.corrupt_share, _WINDOW)
        axes.plot(np.arange(1, len(share) + 1), share, color=_COLOURS[name], label=name, linewidth=2)
    axes.set_ylim(0, 0.6)
    _dress(axes, f"Wrong labels among those trained on (mean of {_WINDOW} updates)", found.recipe.updates)
    axes.legend(loc="center right", frameon=False)


def _dress(axes: Axes, title: str, updates: int) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.set_xlabel("learner updates", color=_INK)
    axes.set_xlim(0, updates)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)


def smoothed(values: list[float], window: int) -> NDArray[np.float64]:
    """Returns at each position the mean of the last `window` values, or of as many as there are."""
    total = np.cumsum([0.0, *values])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(0, end - window)
    return (total[end] - total[begin]) / (end - begin)
