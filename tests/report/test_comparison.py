"""The page of a comparison, drawn from a made-up one of many methods."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.compare.standings import ranking_trust
from potstill.errors import UserError
from potstill.report import render_comparison

MARKUP = "<script>alert(1)</script>&\"'"


def made_up(count: int = 24, seeds: int = 3) -> dict[str, Any]:
    random = np.random.default_rng(0)
    names = [f"method_{number}" for number in range(count)]

    def history(top: float) -> list[dict[str, float]]:
        return [
            {"epoch": float(epoch), "step": 40.0 * epoch, "accuracy": top * (1 - 0.5**epoch), "loss": 1.0}
            for epoch in range(1, 6)
        ]

    def row(name: str, gain: float | None, seconds: float) -> dict[str, Any]:
        per_seed = (0.55 + (gain or 0.0) + random.normal(size=seeds) * 0.006).tolist()
        half = 0.004 + random.random() * 0.012
        return {
            "method": name,
            "status": "done",
            "reason": "",
            "mean": float(np.mean(per_seed)),
            "spread": float(np.std(per_seed, ddof=1)) if seeds > 1 else None,
            "mean_interval": [0.54, 0.56],
            "gain": gain,
            "interval": None if gain is None else [gain - half, gain + half],
            "verdict": None
            if gain is None or seeds == 1
            else "better"
            if gain > half
            else "worse"
            if gain < -half
            else "same",
            "seconds_per_step": seconds,
            "peak_memory_bytes": int(8e8 + 1e8 * random.random()),
            "per_seed": per_seed,
            "gain_per_seed": [],
            "steps": 200,
            "report": None if gain is None else f"methods/{name}/report.html",
            "cells": [{"seed": seed, "metrics": f"{name}/{seed}.jsonl"} for seed in range(seeds)],
        }

    gains = sorted((random.normal(size=count) * 0.012 + 0.01).tolist(), reverse=True)
    rows = [row(name, gain, 0.3 + random.random() * 0.3) for name, gain in zip(names, gains, strict=True)]
    broken = {"method": "torn", "status": "failed", "reason": f"seed 0: {MARKUP}", "gain": None}
    return {
        "metric": "accuracy",
        "selected": "last",
        "seeds": list(range(seeds)),
        "test_samples": 10_000,
        "control": row("control", None, 0.22),
        "methods": [*rows, broken],
        "ranking": ranking_trust([row["per_seed"] for row in rows]),
        "potstill": "0.1.0",
        "teacher": {"validation": 0.93, "test": 0.9339},
        "title": "resnet8 taught by resnet56",
        "recipe": f"task: classification # {MARKUP}\n",
        "environment": {"processor": "a processor", "jobs": 2, "threads": 1, "command": "potstill compare"},
        "histories": {
            row["method"]: [history(score) for score in row["per_seed"]]
            for row in [*rows, {"method": "control", "per_seed": [0.55] * seeds}]
        },
    }


def draw(folder: Path, data: dict[str, Any]) -> str:
    (folder / "comparison.json").write_text(json.dumps(data))
    return render_comparison(folder).read_text()


class Words(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_holds_every_method_and_asks_nobody(tmp_path: Path) -> None:
    data = made_up()
    text = draw(tmp_path, data)
    words = " ".join(Words(text).words)
    for row in data["methods"]:
        assert row["method"] in words
        if row["status"] == "done":
            assert f'href="methods/{row["method"]}/report.html"' in text
    better = sum(row.get("verdict") == "better" for row in data["methods"])
    assert f"{better} of 24" in words
    assert data["ranking"]["words"] in words
    assert "confirm a winner on fresh seeds" in words
    assert "2 cells were trained at once" in words
    assert not re.search(r"""(src|href)=["'](https?:)?//|@import|url\(""", text)
    assert text.count("<script>") == 1
    assert MARKUP not in text
    assert Words(text).tags.count("svg") == 24 + 1
    assert "NaN" not in text.split("<script>")[0]


def test_names_in_the_chart_of_cost_are_those_that_none_beats_in_both(tmp_path: Path) -> None:
    data = made_up(4)
    for row, (seconds, gain) in zip(
        data["methods"], [(0.5, 0.03), (0.3, 0.02), (0.4, 0.01), (0.2, -0.01)], strict=False
    ):
        row |= {"seconds_per_step": seconds, "gain": gain, "interval": [gain - 0.01, gain + 0.01]}
    text = draw(tmp_path, data)
    chart = text[text.index('id="cost"') :]
    names = re.findall(r'<text class="name student"[^>]*>([^<]*)</text>', chart[: chart.index("</svg>")])
    assert sorted(names) == ["method_0", "method_1", "method_3"]


def test_one_seed_and_nothing_finished_are_said(tmp_path: Path) -> None:
    one = made_up(3, seeds=1)
    for row in one["methods"]:
        row["reason"] = "one seed, no verdict"
    assert "one seed, no verdict" in " ".join(Words(draw(tmp_path, one)).words)
    none = made_up(2)
    none["methods"] = none["methods"][-1:]
    assert "No method could be trained" in " ".join(Words(draw(tmp_path, none)).words)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"methods": 3}'])
def test_a_file_that_is_no_comparison_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(UserError, match=r"comparison\.json: expected a comparison, cannot read it"):
        render_comparison(tmp_path)
    assert not (tmp_path / "comparison.html").exists()
