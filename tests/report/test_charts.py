"""Charts: where marks land, what is drawn, and that it can be read."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from potstill.report import style
from potstill.report._scales import Frame, Scale, fitted
from potstill.report.charts import Band, Point, curves, reliability, trade_off
from potstill.report.content import Bin


def marks(svg: str, kind: str) -> list[ElementTree.Element]:
    return [
        one for one in ElementTree.fromstring(svg).iter() if (one.get("class") or "").split(" ")[0] == kind
    ]


def test_scale_is_straight_or_logarithmic() -> None:
    straight = Scale(0, 10, 100, 200)
    assert [straight(value) for value in (0, 5, 10)] == [100, 150, 200]
    logarithmic = Scale(1, 100, 0, 200, log=True)
    assert logarithmic(10) == pytest.approx(100)
    assert Scale(0, 10, 200, 100)(10) == 100


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.723, 0.741), (-3.0, 250.0), (1e-6, 3e-6)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 1).ticks()
    assert 3 <= len(ticks) <= 9
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    step = ticks[1] - ticks[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5, 10)


@pytest.mark.parametrize(("low", "high"), [(50_000.0, 1.2e6), (0.3, 5.0), (1.0, 1e9), (80.0, 95.0)])
def test_logarithmic_ticks(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 1, log=True).ticks()
    assert 2 <= len(ticks) <= 12
    assert all(low <= tick <= high for tick in ticks)


def test_fitted_ranges_are_never_empty() -> None:
    for values in ([], [0.0], [0.5, 0.5], [math.nan]):
        low, high = fitted(values)
        assert low < high
    low, high = fitted([7.0], log=True)
    assert 0 < low < 7 < high


def band(arm: str, spread: float = 0.0) -> Band:
    mean = [0.4, 0.6, 0.7]
    low, high = [value - spread for value in mean], [value + spread for value in mean]
    return Band(arm=arm, label=arm, x=[1, 2, 3], low=low, mean=mean, high=high)


def test_curves_rise_with_their_values_and_labels_stay_apart() -> None:
    svg = curves([band("control", 0.02), band("student")], label="a & b", x_title="epoch", fractions=True)
    lines = marks(svg, "line")
    assert len(lines) == 2
    places = [tuple(map(float, pair.split(","))) for pair in (lines[0].get("points") or "").split()]
    assert places[0][0] < places[1][0] < places[2][0]
    assert places[0][1] > places[1][1] > places[2][1]
    assert len(marks(svg, "band")) == 1
    heights = [float(one.get("y") or 0) for one in marks(svg, "name")]
    assert abs(heights[0] - heights[1]) >= 14.9
    assert ElementTree.fromstring(svg).get("aria-label") == "a & b"


def test_one_epoch_is_drawn_too() -> None:
    one = Band(arm="student", label="student", x=[1], low=[0.5], mean=[0.5], high=[0.5])
    assert len(marks(curves([one], label="", x_title="epoch"), "dot")) == 1


def test_trade_off_places_the_better_higher_and_the_smaller_left() -> None:
    points = [
        Point("teacher", 853_018, 0.93, (0.92, 0.94)),
        Point("control", 78_042, 0.80, (0.79, 0.81), (70_000, 90_000)),
        Point("student", 78_042, 0.82, (0.81, 0.83)),
    ]
    svg = trade_off(points, label="", x_title="parameters", unit="count")
    teacher, (control, student) = marks(svg, "mark")[0], marks(svg, "mark")[1:]
    assert teacher.tag == "rect"
    assert float(control.get("cx") or 0) == float(student.get("cx") or 0) < float(teacher.get("x") or 0)
    assert float(student.get("cy") or 0) < float(control.get("cy") or 0)
    assert len(marks(svg, "whisker")) == 4
    assert len(marks(svg, "step")) == 1


def test_reliability_shows_overconfidence_alone_in_red() -> None:
    sure = Bin(confidence=0.9, accuracy=0.6, count=50)
    modest = Bin(confidence=0.5, accuracy=0.7, count=50)
    svg = reliability("student", [modest, sure])
    frame = Frame.of((0.0, 1.0), (0.0, 1.0), size=(280, 260), right=24)
    bars = marks(svg, "bar")
    assert [float(bar.get("y") or 0) for bar in bars] == pytest.approx([frame.y(0.7), frame.y(0.6)], abs=0.06)
    (gap,) = marks(svg, "gap")
    assert float(gap.get("y") or 0) == pytest.approx(frame.y(0.9), abs=0.06)
    assert float(gap.get("height") or 0) == pytest.approx(frame.y(0.6) - frame.y(0.9), abs=0.1)


@pytest.mark.parametrize("theme", [style._LIGHT, style._DARK])
def test_text_has_enough_contrast(theme: str) -> None:
    colours = dict(re.findall(r"--(\w+):(#[0-9a-f]{6})", theme))
    for ground in ("paper", "panel"):
        for text in ("ink", "soft", "teacher", "control", "student", "up", "down"):
            light, dark = sorted((luminance(colours[ground]), luminance(colours[text])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, text)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
