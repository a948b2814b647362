"""Line charts as inline SVG: no scripts, colours from the page's style sheet, for light, dark and paper alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 14, 40
_FLOOR = _HEIGHT - _BOTTOM
_TICKS = 5

Points = Sequence[tuple[float, float | None]]
"""(x, y) in order of x; a y of None leaves a gap."""
_Place = tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class Line:
    """One line. `style` is a class of the page's style sheet: `run`, `twin`, `second`, `third`."""

    name: str
    points: Points
    style: str = "run"


@dataclass(frozen=True)
class Band:
    """An area between two lines, `low` and `high` at the same x."""

    name: str
    low: Points
    high: Points
    style: str = "wide"


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        key: names it within the page.
        title: what it shows.
        summary: the same for whoever cannot see it: what the lines do.
        x_label, y_label: of the axes.
        shaded: ranges of x that are marked, such as steps that were held back; `shaded_name` says what they are.
        from_zero: whether the y axis starts at 0.
    """

    key: str
    title: str
    summary: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = ()
    bands: Sequence[Band] = ()
    shaded: Sequence[tuple[float, float]] = ()
    shaded_name: str = ""
    from_zero: bool = False
    legend: Sequence[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        marks = [(f"line {line.style}", line.name) for line in self.lines]
        marks += [(f"band {band.style}", band.name) for band in self.bands]
        marks += [("band shaded", self.shaded_name)] if self.shaded else []
        object.__setattr__(self, "legend", marks)

    @property
    def has_data(self) -> bool:
        """Whether there is a point to draw."""
        return any(y is not None for line in self.lines for _, y in line.points)

    @property
    def header(self) -> list[str]:
        """The names of the columns of `rows`."""
        return [self.x_label, *(line.name for line in self.lines)]

    @property
    def rows(self) -> list[list[str]]:
        """What the lines hold, a row per x, for the table below the chart."""
        columns = [{x: y for x, y in line.points if y is not None} for line in self.lines]
        xs = sorted({x for column in columns for x in column})
        return [[number(x), *(number(column[x]) if x in column else "–" for column in columns)] for x in xs]

    def svg(self) -> Markup:
        """Returns the picture."""
        scale = self._scale()
        parts = [
            Markup('<svg viewBox="0 0 {} {}" role="img" aria-labelledby="{key}-title {key}-desc">').format(
                _WIDTH, _HEIGHT, key=self.key
            ),
            Markup('<title id="{key}-title">{}</title><desc id="{key}-desc">{}</desc>').format(
                self.title, self.summary, key=self.key
            ),
            *self._ground(scale),
        ]
        for band in self.bands:
            for piece in _pieces(list(zip(band.low, band.high, strict=True))):
                around = [*(high for _, high in piece), *(low for low, _ in reversed(piece))]
                parts.append(Markup('<path class="band {}" d="{}Z"/>').format(band.style, _path(around, scale)))
        for line in self.lines:
            pieces = _pieces([(point,) for point in line.points])
            parts += [_stroke(line.style, [point for (point,) in piece], scale) for piece in pieces]
        return Markup("").join([*parts, Markup("</svg>")])

    def _ground(self, scale: _Scale) -> Iterator[Markup]:
        """Yields what lies below the lines: marked ranges, grid, axis and labels."""
        for low, high in self.shaded:
            left, width = scale.x(low), max(scale.x(high) - scale.x(low), 0.5)
            box = Markup('<rect class="shaded" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>')
            yield box.format(left, _TOP, width, _FLOOR - _TOP)
        level = Markup('<line class="{}" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>')
        for tick in ticks(*scale.ys):
            y = scale.y(tick)
            yield level.format("grid", _LEFT, _WIDTH - _RIGHT, y=y)
            yield Markup('<text class="y" x="{}" y="{:.1f}">{}</text>').format(_LEFT - 8, y + 4, number(tick))
        for tick in ticks(*scale.xs):
            yield Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(scale.x(tick), _FLOOR + 18, number(tick))
        yield level.format("axis", _LEFT, _WIDTH - _RIGHT, y=_FLOOR)
        across, down = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _FLOOR) / 2
        yield Markup('<text class="label" x="{:.1f}" y="{}">{}</text>').format(across, _HEIGHT - 6, self.x_label)
        turned = Markup('<text class="label" transform="translate(13 {:.1f}) rotate(-90)">{}</text>')
        yield turned.format(down, self.y_label)

    def _scale(self) -> _Scale:
        series = [line.points for line in self.lines]
        series += [points for band in self.bands for points in (band.low, band.high)]
        xs = [x for points in series for x, y in points if y is not None]
        ys = [y for points in series for _, y in points if y is not None]
        if self.from_zero:
            return _Scale(_wide(min(xs), max(xs)), (0.0, max(*ys, 0.0) or 1.0))
        return _Scale(_wide(min(xs), max(xs)), _wide(min(ys), max(ys)))


def ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers from `low` to `high`, `low` below `high`."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)] or [low]


def number(value: float, digits: int = 4) -> str:
    """Returns a number for people: whole ones with thousands apart, others with so many digits that count."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


@dataclass(frozen=True)
class _Scale:
    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> float:
        return _LEFT + (value - self.xs[0]) / (self.xs[1] - self.xs[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _FLOOR - (value - self.ys[0]) / (self.ys[1] - self.ys[0]) * (_FLOOR - _TOP)


def _wide(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _pieces(places: Sequence[_Place]) -> list[list[_Place]]:
    """Returns the stretches without a gap."""
    found: list[list[_Place]] = [[]]
    for place in places:
        if any(y is None for _, y in place):
            found.append([])
        else:
            found[-1].append(place)
    return [piece for piece in found if piece]


def _stroke(style: str, points: Points, scale: _Scale) -> Markup:
    """Returns a line, or a dot where it has one point."""
    if len(points) > 1:
        return Markup('<path class="line {}" d="{}"/>').format(style, _path(points, scale))
    x, y = points[0]
    dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>')
    return dot.format(style, scale.x(x), scale.y(y or 0.0))


def _path(points: Points, scale: _Scale) -> str:
    return "M" + "L".join(f"{scale.x(x):.1f} {scale.y(y or 0.0):.1f}" for x, y in points)
