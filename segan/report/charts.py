"""Line charts as coordinates; `page.html.j2` draws them as SVG, in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP, BOTTOM = 52.0, 330.0, 14.0, 150.0  # of the plot, in the template's 340 x 188
MAX_POINTS = 300  # of a curve; more would be one blot

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A label at a coordinate."""

    position: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve; `kind` is a class of the style sheet, `dots` also shows its points."""

    name: str
    css_class: str
    points: str
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high`, which lie at `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[Tick, ...] = ()

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True)
class Chart:
    """
    Attributes:
        label: what it shows, for those who cannot see it.
        across: what the x axis measures, with its unit.
        marks: dashed lines up from the x axis.
        bars: x, y, width and height of each.
    """

    label: str
    x_label: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    marks: tuple[Tick, ...] = ()
    bars: tuple[tuple[float, float, float, float], ...] = ()


def line_chart(
    label: str,
    x_label: str,
    curves: Sequence[tuple[str, str, Points]],
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    format_x: Callable[[float], str] | None = None,
    format_y: Callable[[float], str] | None = None,
    dots: bool = False,
    max_points: int = MAX_POINTS,
) -> Chart | None:
    """A chart of curves, each with name, kind and points; None where none of them has a point.

    Args:
        x_range, y_range: the axis, from end to end; round numbers around the points else.
        marks: (x, text) of dashed lines.
        x_text, y_text: a tick's number in words.
        dots: shows the points; those of a curve of one are shown in any case.
        most: points of a curve, see `thin`.
    """
    visible = [
        (name, kind, downsample(points, max_points)) for name, kind, points in curves if points
    ]
    if not visible:
        return None
    all_points = [point for _, _, points in visible for point in points]
    x = _axis([p[0] for p in all_points], x_range, LEFT, RIGHT, format_x)
    y = _axis([p[1] for p in all_points], y_range, BOTTOM, TOP, format_y)
    lines = []
    for name, kind, points in visible:
        placed = [(x(a), y(b)) for a, b in points]
        shown = tuple(placed) if dots or len(placed) == 1 else ()
        lines.append(Line(name, kind, " ".join(f"{a:g},{b:g}" for a, b in placed), shown))
    return Chart(label, x_label, x, y, tuple(lines), tuple(Tick(x(at), text) for at, text in marks))


def histogram_chart(label: str, x_label: str, counts: Sequence[int]) -> Chart:
    """Bars of the share that each part of [0, 1] has of all."""
    total = max(1, sum(counts))
    ticks = nice_ticks(0, max(counts) / total, 4)
    x = _axis([], (0, 1), LEFT, RIGHT, None)
    y = _axis([], (0, ticks[-1]), BOTTOM, TOP, format_percent)
    wide = (RIGHT - LEFT) / len(counts)
    bars = [
        (round(LEFT + i * wide + 0.5, 1), y(n / total), round(wide - 1, 1), BOTTOM - y(n / total))
        for i, n in enumerate(counts)
        if n
    ]
    return Chart(label, x_label, x, y, (), bars=tuple(bars))


def downsample(points: Points, max_points: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most so many points, each the mean of as many neighbours."""
    group_size = math.ceil(len(points) / max_points)
    groups = (points[at : at + group_size] for at in range(0, len(points), max(1, group_size)))
    return [(_mean([p[0] for p in group]), _mean([p[1] for p in group])) for group in groups]


def nice_ticks(low: float, high: float, max_ticks: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, in steps of 1, 2 or 5 times a power of
    ten."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    power = 10 ** math.floor(math.log10((high - low) / max_ticks))
    step = next(
        m * power for m in (1, 2, 5, 10, 20) if _num_steps(low, high, m * power) <= max_ticks
    )
    first = math.floor(low / step + 1e-9)
    count = math.ceil(high / step - 1e-9) - first
    # Rounded, because 3 x 0.1 is not 0.3.
    return [round((first + i) * step, 12) for i in range(count + 1)]


def format_number(value: float) -> str:
    """A tick's number, no longer than it need be."""
    return f"{value:.4g}".replace("-", "\u2212")


def format_percent(share: float) -> str:
    return f"{100 * share:.3g}\u00a0%"


def _num_steps(low: float, high: float, step: float) -> int:
    return math.ceil(high / step - 1e-9) - math.floor(low / step + 1e-9)


def _axis(
    values: Sequence[float],
    limits: tuple[float, float] | None,
    start: float,
    end: float,
    format_value: Callable[[float], str] | None,
) -> Axis:
    ticks = nice_ticks(*(limits or (min(values), max(values))))
    low, high = limits or (ticks[0], ticks[-1])
    axis = Axis(low, high, start, end)
    labels = [
        Tick(axis(value), (format_value or format_number)(value))
        for value in ticks
        if low <= value <= high
    ]
    return Axis(low, high, start, end, tuple(labels))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class ParallelCoordinates:
    """Parallel coordinates: an upright axis for each quantity, a line across them for each thing.

    Attributes:
        axes: of each, where it stands, its name and its ticks.
    """

    label: str
    axes: tuple[tuple[float, str, tuple[Tick, ...]], ...]
    lines: tuple[Line, ...]


def parallel_coordinates(
    label: str,
    quantities: Sequence[tuple[str, Sequence[float], bool]],
    css_classes: Sequence[str],
    names: Sequence[str],
) -> ParallelCoordinates | None:
    """Parallel coordinates of some things, in 720 x 250, the last drawn first; None of none.

    Args:
        quantities: name, the value of each thing, and whether its axis is logarithmic.
        kinds, names: of each thing.
    """
    if not names:
        return None
    positions = [
        round(70 + 570 * i / max(1, len(quantities) - 1), 1) for i in range(len(quantities))
    ]
    axes = [_vertical_axis(values, logarithmic) for _, values, logarithmic in quantities]
    lines = [
        Line(
            name,
            css_classes[i],
            " ".join(
                f"{at:g},{axis(math.log10(values[i]) if logarithmic else values[i]):g}"
                for at, axis, (_, values, logarithmic) in zip(
                    positions, axes, quantities, strict=True
                )
            ),
        )
        for i, name in enumerate(names)
    ]
    shown = [
        (at, name, axis.ticks)
        for at, axis, (name, _, _) in zip(positions, axes, quantities, strict=True)
    ]
    return ParallelCoordinates(label, tuple(shown), tuple(lines[::-1]))


def _vertical_axis(values: Sequence[float], logarithmic: bool) -> Axis:
    """An axis from the least to the greatest value, which are its ticks, with the middle."""
    ends = (min(values), max(values))
    low, high = (math.log10(end) for end in ends) if logarithmic else ends
    if low == high:
        return Axis(low - 1, high + 1, 210, 40, (Tick(125, format_number(ends[0])),))
    middle = (low + high) / 2
    ticks = [(low, ends[0]), (middle, 10**middle if logarithmic else middle), (high, ends[1])]
    axis = Axis(low, high, 210, 40)
    return Axis(low, high, 210, 40, tuple(Tick(axis(at), f"{value:.3g}") for at, value in ticks))
