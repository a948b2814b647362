"""Draws a dashboard as a picture, where no Grafana is: same panels, titles, units, legends, limits and layout.

What the JSON says is drawn, not what its code says, so a picture shows what Grafana will be given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

mpl.rcParams["font.family"] = "DejaVu Sans"

_COLUMNS = 24
_INCHES_WIDE = 16.0
_INCHES_PER_UNIT = 0.36
_DPI = 110
_COLOUR_COUNT = 128
_GROUND, _PANEL, _EDGE, _INK, _FAINT = "#f4f5f7", "#ffffff", "#dfe1e6", "#24292e", "#6b7280"
_COLOURS = {"green": "#3a8f4d", "yellow": "#d9a514", "red": "#d0343a"}
_LINES = ("#2f6fb5", "#e07b28", "#3a8f4d", "#8a5fb0", "#c2433f", "#4fa7a5", "#a0672d", "#767a80")
_LONGEST_LEGEND, _LEGEND_ROWS = 34, 3
_TICK_S, _TICK_STEPS = 15, (1, 2, 2.5, 5, 10)
_HEADROOM = 1.05
_SI_PREFIXES = ("", "k", "M", "G", "T")


@dataclass(frozen=True)
class Line:
    """One series: its labels and its values over time, seconds since the epoch."""

    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]


Ask = Callable[[str], Sequence[Line]]
"""Answers a query with Grafana's variables in it, over the time of the picture."""


def draw(dashboard: Mapping[str, Any], ask: Ask, start: float, end: float, path: Path) -> None:
    """Draws a dashboard into a PNG file: what `ask` answers to its queries, from `start` to `end` since the epoch."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    units = height + 2
    figure = Figure(figsize=(_INCHES_WIDE, units * _INCHES_PER_UNIT), facecolor=_GROUND)
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.75 / units, dashboard["title"], size=17, weight="bold", color=_INK, va="center")
    figure.text(0.012, 1 - 1.6 / units, dashboard["description"], size=10, color=_FAINT, va="center")
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        left, width = at["x"] / _COLUMNS, at["w"] / _COLUMNS
        bottom, tall = 1 - (at["y"] + at["h"] + 2) / units, at["h"] / units
        if panel["type"] == "row":
            figure.text(0.012, bottom + tall / 2, panel["title"], size=12, weight="bold", color=_INK, va="center")
            continue
        frame = figure.add_axes((left + 0.004, bottom + 0.12 / units, width - 0.008, tall - 0.24 / units))
        frame.set(xticks=[], yticks=[], facecolor=_PANEL)
        for spine in frame.spines.values():
            spine.set_color(_EDGE)
        drawn = [
            _Drawn(_legend(target["legendFormat"], line.labels), line, target["refId"] in _dashed(panel))
            for target in panel["targets"]
            for line in ask(target["expr"])
        ]
        drawn.sort(key=lambda one: (one.is_dashed, one.legend))
        if panel["type"] == "stat":
            _draw_number(figure, frame, panel, drawn)
        else:
            axes = _draw_graph(figure, frame, panel, drawn, units)
            _axes_in(axes, panel["fieldConfig"]["defaults"], start, end)
    drawing = BytesIO()
    figure.savefig(drawing, dpi=_DPI, facecolor=_GROUND)
    with Image.open(drawing) as picture:
        picture.convert("RGB").quantize(_COLOUR_COUNT).save(path, optimize=True)


@dataclass(frozen=True)
class _Drawn:
    """A series with its legend."""

    legend: str
    line: Line
    is_dashed: bool


def _dashed(panel: Mapping[str, Any]) -> set[str]:
    """The queries of a panel that are drawn dashed."""
    return {
        override["matcher"]["options"]
        for override in panel["fieldConfig"]["overrides"]
        if any(value["id"] == "custom.lineStyle" for value in override["properties"])
    }


def _draw_number(figure: Figure, frame: Axes, panel: Mapping[str, Any], drawn: Sequence[_Drawn]) -> None:
    _title(frame, panel, wraps_at=int(panel["gridPos"]["w"] * 7.5))
    finite = [value for one in drawn for value in one.line.values if math.isfinite(value)]
    last = finite[-1] if finite else math.nan
    defaults = panel["fieldConfig"]["defaults"]
    text = _words(defaults).get(last) or _in_unit(defaults["unit"])(last) if finite else "no data"
    colour = _COLOURS[_step_of(panel, last)] if finite else _FAINT
    frame.text(
        0.5, 0.45, text, transform=frame.transAxes, ha="center", va="center", size=22, weight="bold", color=colour
    )
    if len(finite) > 1:
        box = frame.get_position()
        spark = figure.add_axes((box.x0, box.y0, box.width, box.height * 0.25))
        line = drawn[0].line
        spark.fill_between(line.times, line.values, color=colour, alpha=0.18, linewidth=0)
        spark.plot(line.times, line.values, color=colour, linewidth=0.8)
        spark.set_ylim(0, max(max(finite) * 1.1, 1e-9))
        spark.margins(x=0)
        spark.axis("off")


def _draw_graph(figure: Figure, frame: Axes, panel: Mapping[str, Any], drawn: Sequence[_Drawn], units: float) -> Axes:
    _title(frame, panel, wraps_at=int(panel["gridPos"]["w"] * 7.5))
    box = frame.get_position()
    axes = figure.add_axes(
        (box.x0 + 0.042, box.y0 + 1.95 / units, box.width - 0.052, box.height - 3.25 / units), facecolor=_PANEL
    )
    if panel["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal":
        _stack(axes, drawn)
    else:
        for number, one in enumerate(drawn):
            colour = _FAINT if one.is_dashed else _LINES[number % len(_LINES)]
            style = "--" if one.is_dashed else "-"
            axes.plot(one.line.times, one.line.values, color=colour, linestyle=style, linewidth=1.5, label=one.legend)
    if not drawn:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=_FAINT)
    handles, legends = axes.get_legend_handles_labels()
    if legends:
        longest = min(_LONGEST_LEGEND, max(map(len, legends)))
        columns = max(1, min(4, panel["gridPos"]["w"] * 10 // (longest + 7)))
        room = columns * _LEGEND_ROWS
        shown = [legend if len(legend) <= longest else f"{legend[: longest - 1]}…" for legend in legends[:room]]
        if len(legends) > room:
            shown[-1] = f"and {len(legends) - room + 1} more"
        axes.legend(
            handles[:room],
            shown,
            loc="upper left",
            bbox_to_anchor=(0, -0.16),
            ncols=columns,
            frameon=False,
            fontsize=7.5,
            handlelength=1.2,
            columnspacing=1.2,
            labelspacing=0.3,
            labelcolor=_INK,
            borderaxespad=0,
        )
    return axes


def _stack(axes: Axes, drawn: Sequence[_Drawn]) -> None:
    times = sorted({at for one in drawn for at in one.line.times})
    below = [0.0] * len(times)
    for number, one in enumerate(drawn):
        known = dict(zip(one.line.times, one.line.values, strict=True))
        values = [known.get(at, 0.0) for at in times]
        above = [low + (value if math.isfinite(value) else 0.0) for low, value in zip(below, values, strict=True)]
        colour = _LINES[number % len(_LINES)]
        axes.fill_between(times, below, above, color=colour, alpha=0.45, linewidth=0, label=one.legend)
        axes.plot(times, above, color=colour, linewidth=1)
        below = above


def _axes_in(axes: Axes, defaults: Mapping[str, Any], start: float, end: float) -> None:
    """Scales and labels the axes in the panel's unit, and draws its limits."""
    high = defaults.get("max") or max(axes.get_ylim()[1], _HEADROOM * axes.dataLim.y1, 0.0)
    limits = [step["value"] for step in defaults["thresholds"]["steps"] if step["value"] is not None]
    if not axes.dataLim.y1 > 0:  # nothing, or nothing but zeros
        high = defaults.get("max") or 1.5 * max(limits, default=1.0)
    if "min" in defaults:
        axes.set_ylim(defaults["min"], high)
    if defaults.get("custom", {}).get("thresholdsStyle", {}).get("mode") == "dashed":
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is not None and step["value"] <= high:
                axes.axhline(step["value"], color=_COLOURS[step["color"]], linewidth=1, linestyle=(0, (4, 3)))
    unit, scale = defaults["unit"], _tick_scale(defaults["unit"], high)
    low, high = axes.get_ylim()
    ticks = MaxNLocator(4, steps=_TICK_STEPS).tick_values(low / scale, high / scale)
    axes.set_yticks([tick * scale for tick in ticks if low <= tick * scale <= high])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _in_unit(unit)(value)))
    axes.set_xlim(start, end)
    axes.set_xticks([start + seconds for seconds in range(0, int(end - start) + 1, _TICK_S)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value - start:.0f} s"))
    axes.grid(color=_EDGE, linewidth=0.6)
    axes.tick_params(labelsize=7.5, colors=_FAINT, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _tick_scale(unit: str, high: float) -> float:
    """What ticks should be round multiples of."""
    if unit == "s":
        return next((float(size) for size in (86400, 3600, 60) if high > 2 * size), 1.0)
    if unit == "bytes" and high > 0:
        return float(1024 ** int(math.log(high, 1024)))
    return 1.0


def _title(frame: Axes, panel: Mapping[str, Any], wraps_at: int) -> None:
    lines = wrap(panel["title"], wraps_at)
    frame.annotate(
        "\n".join(lines[:2]), (0, 1), (7, -6), xycoords="axes fraction", textcoords="offset points", va="top", size=9.5,
        weight="bold", color=_INK,
    )  # fmt: skip


def _legend(pattern: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda name: labels.get(name[1], ""), pattern)


def _step_of(panel: Mapping[str, Any], value: float) -> str:
    colour = "green"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return colour


def _words(defaults: Mapping[str, Any]) -> dict[float, str]:
    """The values of a panel that are shown as words."""
    return {
        float(value): shown["text"]
        for mapping in defaults.get("mappings", [])
        if mapping["type"] == "value"
        for value, shown in mapping["options"].items()
    }


def _in_unit(unit: str) -> Callable[[float], str]:
    """Returns how Grafana writes a value in a unit."""
    if unit == "s":
        return _duration
    if unit in ("bytes", "mbytes"):
        scale = 1 if unit == "bytes" else 2**20
        return lambda value: _scaled(value * scale, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    if unit == "percentunit":
        return lambda value: f"{100 * value:.3g} %"
    if unit == "percent":
        return lambda value: f"{value:.3g} %"
    counted = "FLOP/s" if unit == "flops" else unit.removeprefix("si:") if unit.startswith("si:") else ""
    if counted:
        return lambda value: _scaled(value, 1000, [prefix + counted for prefix in _SI_PREFIXES])
    suffix = unit.removeprefix("suffix:") if unit.startswith("suffix:") else ""
    return lambda value: _scaled(value, 1000, _SI_PREFIXES).replace(" ", "") + suffix


def _duration(seconds: float) -> str:
    size = abs(seconds)
    for bound, divisor, name in (
        (1e-3, 1e-6, "µs"),
        (1, 1e-3, "ms"),
        (120, 1, "s"),
        (7200, 60, "min"),
        (172800, 3600, "h"),
    ):
        if size < bound:
            return f"{seconds / divisor:.3g} {name}" if seconds else "0 s"
    return f"{seconds / 86400:.3g} d"


def _scaled(value: float, base: int, names: Sequence[str]) -> str:
    power = 0
    while abs(value) >= base and power < len(names) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g} {names[power]}".strip()
