"""The demo's results as a picture: test accuracy, and the share of wrong labels selected, over updates."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

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
    _mark_arrivals(axes, found, target)
    lowest = min(min(arm.accuracy[len(arm.accuracy) // 4 :]) for arm in found.histories.values())
    axes.set_ylim(bottom=max(0.0, lowest - 0.15), top=1.0)
    _dress(axes, "Test accuracy", found.recipe.updates)
    axes.legend(loc="lower right", frameon=False)


def _mark_arrivals(axes: Axes, found: Comparison, target: float) -> None:
    """Marks where each arm first had `target`, with the number of updates at the upper edge."""
    arrivals = sorted((arm.updates_to(target) or math.inf, name) for name, arm in found.histories.items())
    # The labels stand on the outer sides of their lines, so that near ones do not meet.
    for (updates, name), side in zip(arrivals, ("right", "left"), strict=True):
        if math.isinf(updates):
            continue
        axes.vlines(updates, target, 1.0, color=_COLOURS[name], linestyle=":", linewidth=1.2)
        axes.plot([updates], [target], "o", color=_COLOURS[name], markersize=7, markeredgecolor="white", zorder=5)
        axes.annotate(
            f"{updates:.0f}",
            (updates, 1.0),
            xytext=(-5 if side == "right" else 5, -4),
            textcoords="offset points",
            ha=side,
            va="top",
            color=_COLOURS[name],
            weight="bold",
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
    means: NDArray[np.float64] = (total[end] - total[begin]) / (end - begin)
    return means
