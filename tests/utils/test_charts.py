"""Charts: ticks and coordinates by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan.utils.html.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    downsample,
    histogram_chart,
    line_chart,
    nice_ticks,
    parallel_coordinates,
)

numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 4))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.03, 0.29, [0, 0.1, 0.2, 0.3]),
        (0, 9, [0, 2, 4, 6, 8, 10]),
        (3, 3, [1, 2, 3, 4, 5]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_by_hand(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == ticks


@given(numbers, numbers)
def test_ticks_enclose_the_range(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-6 * abs(low)
    assert ticks[-1] >= high - 1e-6 * abs(high)
    assert 2 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))


def test_coordinates_of_a_curve() -> None:
    chart = line_chart("it", "epochs", [("up", "a", [(0, 0), (1, 0.5), (2, 1)])], (0, 2), (0, 1))
    assert chart is not None
    middle = ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)
    assert (
        chart.lines[0].points
        == f"{LEFT:g},{BOTTOM:g} {middle[0]:g},{middle[1]:g} {RIGHT:g},{TOP:g}"
    )
    assert [tick.text for tick in chart.x.ticks] == ["0", "0.5", "1", "1.5", "2"]


def test_curves_with_one_point_and_none() -> None:
    one = line_chart("it", "epochs", [("a", "a", [(1, 0.5)]), ("b", "b", [])])
    assert one is not None
    assert [(line.name, len(line.dots)) for line in one.lines] == [("a", 1)]
    assert line_chart("it", "epochs", [("a", "a", [])]) is None


def test_downsample() -> None:
    # 7 points to at most 3: three, three and one.
    points = [(float(i), float(10 * i)) for i in range(7)]
    assert downsample(points, 3) == [(1, 10), (4, 40), (6, 60)]
    assert downsample(points, 7) == points


def test_histogram_by_hand() -> None:
    # 1 and 3 of 4 are 0.25 and 0.75; the axis ends at 0.8.
    chart = histogram_chart("it", "Jaccard", [1, 0, 0, 3])
    tall = [round(height / (BOTTOM - TOP), 2) for _, _, _, height in chart.bars]
    assert [bar[0] for bar in chart.bars] == [LEFT + 0.5, LEFT + 0.5 + 3 * (RIGHT - LEFT) / 4]
    assert chart.y.ticks[-1].text == "80\u00a0%"
    assert tall == [round(0.25 / 0.8, 2), round(0.75 / 0.8, 2)]


def test_parallel_coordinates_by_hand() -> None:
    # On a logarithmic axis 0.01 is halfway between 0.001 and 0.1; a constant is in the middle.
    chart = parallel_coordinates(
        "it",
        [("rate", [0.1, 0.01, 0.001], True), ("k", [1, 1, 1], False)],
        ["a", "quiet", "quiet"],
        ["x", "y", "z"],
    )
    assert chart is not None
    assert [line.name for line in chart.lines] == ["z", "y", "x"], "the first lies on top"
    assert [line.points for line in chart.lines] == [
        "70,210 640,125",
        "70,125 640,125",
        "70,40 640,125",
    ]
    assert [tick.text for tick in chart.axes[0][2]] == ["0.001", "0.01", "0.1"]
    assert parallel_coordinates("it", [("rate", [], True)], [], []) is None
