"""Charts as coordinates, which the macros of parts.html.j2 draw as SVG in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP, BOTTOM = 52.0, 330.0, 14.0, 150.0  # of the plot, in an SVG of 340 x 188
PARALLEL_LEFT, PARALLEL_RIGHT, PARALLEL_TOP, PARALLEL_BOTTOM = 70, 640, 40, 210  # in 720 x 250
MAX_POINTS = 300  # of a curve; more cannot be told apart

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A text at a coordinate of an axis."""

    position: float
    text: str


@dataclass(frozen=True)
class Line:
    """A polyline.

    Attributes:
        css_class: of page.css.
        points: the SVG attribute: "x,y x,y ...".
        dots: points that are shown as dots too.
    """

    name: str
    css_class: str
    points: str
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Axis:
    """A linear axis: the values `low` and `high` have the coordinates `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    labels: tuple[tuple[float, str], ...] = ()  # (value, text) of each tick

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        fraction = (value - self.low) / (self.high - self.low)
        return round(self.start + fraction * (self.end - self.start), 1)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        return tuple(Tick(self(value), text) for value, text in self.labels)


@dataclass(frozen=True)
class Chart:
    """A line chart or a histogram.

    Attributes:
        label: describes the chart to a screen reader.
        x_label: what the x axis shows, with its unit.
        marks: dashed vertical lines with their texts.
        bars: x, y, width and height of each.
    """

    label: str
    x_label: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...] = ()
    marks: tuple[Tick, ...] = ()
    bars: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class ParallelCoordinates:
    """A vertical axis for each quantity, and a line across all axes for each item.

    Attributes:
        label: describes the chart to a screen reader.
        axes: (x coordinate, name, ticks) of each.
    """

    label: str
    axes: tuple[tuple[float, str, tuple[Tick, ...]], ...]
    lines: tuple[Line, ...]


def line_chart(
    label: str,
    x_label: str,
    curves: Sequence[tuple[str, str, Points]],
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    format_y: Callable[[float], str] | None = None,
    dots: bool = False,
    max_points: int = MAX_POINTS,
) -> Chart | None:
    """A chart of curves; None if no curve has a point.

    Args:
        curves: (name, CSS class, points) of each.
        x_range, y_range: ends of the axis; default: round numbers around the points.
        marks: (x, text) of each.
        format_y: formats a tick of the y axis; default: `format_number`.
        dots: shows every point; the point of a curve with only one is always shown.
        max_points: points of a curve, see `downsample`.
    """
    visible = [
        (name, css, downsample(points, max_points)) for name, css, points in curves if points
    ]
    if not visible:
        return None
    xs, ys = zip(*(point for _, _, points in visible for point in points), strict=True)
    x = _axis(x_range or (min(xs), max(xs)), LEFT, RIGHT, fits=x_range is not None)
    y = _axis(y_range or (min(ys), max(ys)), BOTTOM, TOP, y_range is not None, format_y)
    lines = []
    for name, css_class, points in visible:
        placed = tuple((x(a), y(b)) for a, b in points)
        shown = placed if dots or len(placed) == 1 else ()
        lines.append(Line(name, css_class, _polyline(placed), shown))
    return Chart(label, x_label, x, y, tuple(lines), _marks(x, marks))


def histogram_chart(
    label: str,
    x_label: str,
    counts: Sequence[int],
    x_range: tuple[float, float] = (0, 1),
    total: int | None = None,
    highest: float | None = None,
    marks: Sequence[tuple[float, str]] = (),
    format_x: Callable[[float], str] | None = None,
) -> Chart:
    """Bars of the fractions `counts / total` over equal bins of `x_range`.

    Args:
        total: default: the sum of the counts.
        highest: fraction that the y axis must reach; default: the largest one.
        marks: (x, text) of each.
        format_x: formats a tick of the x axis; default: `format_number`.
    """
    total = max(1, sum(counts) if total is None else total)
    ticks = nice_ticks(0, max(counts) / total if highest is None else highest, 4)
    x = _axis(x_range, LEFT, RIGHT, True, format_x)
    y = _axis((0, ticks[-1]), BOTTOM, TOP, True, format_percent)
    width = (RIGHT - LEFT) / len(counts)
    bars = tuple(
        (round(LEFT + i * width + 0.5, 1), y(n / total), round(width - 1, 1), BOTTOM - y(n / total))
        for i, n in enumerate(counts)
        if n
    )
    return Chart(label, x_label, x, y, marks=_marks(x, marks), bars=bars)


def parallel_coordinates(
    label: str,
    quantities: Sequence[tuple[str, Sequence[float], bool]],
    css_classes: Sequence[str],
    names: Sequence[str],
) -> ParallelCoordinates | None:
    """Parallel coordinates with the first item on top; None if there are no items.

    Args:
        quantities: (name, value of each item, whether its axis is logarithmic).
        css_classes, names: of each item.
    """
    if not names:
        return None
    step = (PARALLEL_RIGHT - PARALLEL_LEFT) / max(1, len(quantities) - 1)
    positions = [round(PARALLEL_LEFT + i * step, 1) for i in range(len(quantities))]
    axes, columns = [], []
    for position, (name, values, logarithmic) in zip(positions, quantities, strict=True):
        axis = _vertical_axis(values, logarithmic)
        axes.append((position, name, axis.ticks))
        columns.append([(position, axis(math.log10(v) if logarithmic else v)) for v in values])
    lines = [
        Line(name, css_class, _polyline(points))
        for name, css_class, points in zip(
            names, css_classes, zip(*columns, strict=True), strict=True
        )
    ]
    return ParallelCoordinates(label, tuple(axes), tuple(lines[::-1]))


def downsample(points: Points, max_points: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `max_points` points, each the mean of as many neighbours."""
    group_size = max(1, math.ceil(len(points) / max_points))
    groups = (points[i : i + group_size] for i in range(0, len(points), group_size))
    return [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups]


def nice_ticks(low: float, high: float, max_steps: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, at most `max_steps` + 1 of them.

    The step is 1, 2 or 5 times a power of ten. Around 0 alone they are those from 0 to 1, since
    what is drawn is not negative.
    """
    if high <= low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0, 1)
    power = 10 ** math.floor(math.log10((high - low) / max_steps))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= max_steps:
            break
    return [round(i * step, 12) for i in range(first, last + 1)]  # 3 * 0.1 is not 0.3


def format_number(value: float) -> str:
    """Up to four significant digits."""
    return f"{value:.4g}".replace("-", "\u2212")


def format_percent(fraction: float) -> str:
    """Percent with up to three significant digits."""
    return f"{100 * fraction:.3g}\u00a0%"


def _axis(
    limits: tuple[float, float],
    start: float,
    end: float,
    fits: bool,
    format_value: Callable[[float], str] | None = None,
) -> Axis:
    """An axis with round ticks. It ends at `limits` if it `fits`, else at the ticks around them."""
    ticks = nice_ticks(*limits)
    low, high = limits if fits else (ticks[0], ticks[-1])
    shown = [value for value in ticks if low <= value <= high]
    labels = tuple((value, (format_value or format_number)(value)) for value in shown)
    return Axis(low, high, start, end, labels)


def _vertical_axis(values: Sequence[float], logarithmic: bool) -> Axis:
    """An axis from the least to the greatest value, with ticks at both and in the middle."""
    ends = (min(values), max(values))
    low, high = (math.log10(end) for end in ends) if logarithmic else ends
    if low == high:
        constant = ((low, format_number(ends[0])),)
        return Axis(low - 1, high + 1, PARALLEL_BOTTOM, PARALLEL_TOP, constant)
    middle = (low + high) / 2
    shown = ((low, ends[0]), (middle, 10**middle if logarithmic else middle), (high, ends[1]))
    labels = tuple((position, f"{value:.3g}") for position, value in shown)
    return Axis(low, high, PARALLEL_BOTTOM, PARALLEL_TOP, labels)


def _marks(x: Axis, marks: Sequence[tuple[float, str]]) -> tuple[Tick, ...]:
    return tuple(Tick(x(value), text) for value, text in marks)


def _polyline(points: Points) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
