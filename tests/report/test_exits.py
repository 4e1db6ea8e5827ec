"""The section of early exits: names that lie over nothing, and another run beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from potstill.cli import app
from potstill.errors import UserError
from potstill.report import render
from potstill.report._labels import CHARACTER, HEIGHT, Label, names
from potstill.report._scales import Frame

MakeRun = Callable[..., Path]
PATHS = ("layer1.7", "layer2.3", "layer2.7", "layer3.2", "deepest")


def found() -> dict[str, Any]:
    """Made-up figures of four exits, whose marks stand close together."""
    accuracy = (0.684, 0.853, 0.892, 0.924, 0.934)
    costs = (2.4, 3.3, 3.9, 4.5, 5.5)
    shares = (0.2, 0.3, 0.2, 0.1, 0.2)
    rows = [
        {
            "name": name,
            "accuracy": score,
            "share": share,
            "accuracy_of_leavers": 0.99,
            "macs": round(cost * 2e7),
            "latency_ms": cost,
            "temperature": 1.2,
            "ece": 0.03,
            "ece_calibrated": 0.01,
        }
        for name, score, share, cost in zip(PATHS, accuracy, shares, costs, strict=True)
    ]
    taken = {"accuracy": 0.931, "whole": 0.934, "lost": 0.003, "risk": 0.005, "shares": list(shares)}
    taken |= {"macs": 7.4e7, "latency_ms": 3.7}
    time = {"median_ms": 3.7, "low_ms": 3.6, "high_ms": 3.9, "runs": 7}
    curve = [
        {"accuracy": 0.934 - 0.25 * share**3, "macs": (5.5 - 3 * share) * 2e7, "latency_ms": 5.5 - 3 * share}
        for share in np.linspace(0, 1, 20).tolist()
    ]
    kinds = ("probability", "entropy", "margin", "patience")
    return {
        "policy": {"kind": "probability", "thresholds": [0.9] * 4, "temperatures": [1.0] * 5},
        "wish": {"max_loss": 0.01},
        "promised": 0.01,
        "confidence": 0.9,
        "note": "",
        "cannot_cut": "",
        "calibration": {"part": "test", "samples": 5000, "tested": 3500, "risk": 0.006},
        "reporting": {"part": "test", "samples": 5000},
        "exits": rows,
        "policies": {kind: {**taken, "promised": 0.01, "note": "", "policy": {}} for kind in kinds},
        "curves": dict.fromkeys(kinds, curve),
        "chosen": {
            **taken,
            "whole_macs": round(1.25e8),
            "timed": {"1": {"early": time, "whole": {**time, "median_ms": 6.9}, "whole_over_early": 1.86}},
        },
        "shift": [],
    }


def charts(page: str) -> list[str]:
    section = page[page.index('<section id="exits">') :].partition("</section>")[0]
    return [one for one in re.findall(r"<svg.*?</svg>", section, re.DOTALL) if "Accuracy against" in one]


def boxes(chart: str) -> dict[str, tuple[float, float, float, float]]:
    pattern = r'<text class="name [a-z]+" x="([-.\d]+)" y="([-.\d]+)" text-anchor="(\w+)">([^<]+)</text>'
    placed = {}
    for x, y, anchor, name in re.findall(pattern, chart):
        left = float(x) - (CHARACTER * len(name) if anchor == "end" else 0)
        placed[name] = (left, float(y) - HEIGHT, left + CHARACTER * len(name), float(y))
    return placed


def overlap(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    across = min(first[2], second[2]) > max(first[0], second[0])
    return across and min(first[3], second[3]) > max(first[1], second[1])


def test_names_lie_over_nothing(make_run: MakeRun) -> None:
    run = make_run(result_changes={"early_exit": found()})
    other = make_run(run.parent / "other")
    page = render(run, beside=other).read_text()
    assert len(charts(page)) == 2
    for chart in charts(page):
        placed = boxes(chart)
        assert set(placed) == {*PATHS, "without exits", "chosen", "resnet8, distilled", "resnet8, alone"}
        names_of = list(placed)
        for place, name in enumerate(names_of):
            assert placed[name][0] >= 48
            assert placed[name][2] <= 430
            for second in names_of[place + 1 :]:
                assert not overlap(placed[name], placed[second]), (name, second)


def test_a_name_alone_stands_beside_its_mark_and_within_the_frame() -> None:
    frame = Frame.of((0, 1), (0, 1))
    for x in (60.0, 200.0, 405.0):
        text = names(frame, [Label("student", "chosen", x, 100.0)])
        (box,) = boxes(text).values()
        assert min(abs(box[0] - x), abs(box[2] - x)) < 10
        assert 48 <= box[0] < box[2] <= 430


def test_the_networks_of_another_run_stand_beside(make_run: MakeRun) -> None:
    run = make_run(result_changes={"early_exit": found()})
    other = make_run(run.parent / "other", control=False)
    assert "resnet8, distilled" not in render(run).read_text()
    told = CliRunner().invoke(app, ["report", str(run), "--beside", str(other)])
    assert told.exit_code == 0, told.output
    page = (run / "report.html").read_text()
    assert all("resnet8, distilled" in chart and "<polygon" in chart for chart in charts(page))
    assert "resnet8, alone" not in page
    assert "on all of its 1,000 test images and timed there" in page


def test_what_cannot_be_compared_is_refused(make_run: MakeRun) -> None:
    run = make_run(result_changes={"early_exit": found()})
    plain = make_run(run.parent / "plain")
    with pytest.raises(UserError, match="--beside: expected a run with early exits"):
        render(plain, beside=run)
    stranger = make_run(run.parent / "stranger", names=tuple("abcdefghij"))
    with pytest.raises(UserError, match="--beside: expected a run on the same classes"):
        render(run, beside=stranger)
    with pytest.raises(UserError, match=r"report.json: cannot read what the report is drawn from"):
        render(run, beside=run.parent)
