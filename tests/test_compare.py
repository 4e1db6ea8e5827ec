"""Methods x seeds: equal conditions, nothing trained twice, one broken method stops no other."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from potstill.cli import app
from potstill.compare import Comparison, compare_methods, line_up
from potstill.compare.standings import ranking_trust
from potstill.errors import UserError
from potstill.run import run

TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
METHODS = "kl,attention_transfer,kl+feature_mse"
ROWS = """
hot: {kl: {temperature: 8}}
nowhere: {hint: {loss: feature_mse, layers: [absent]}}
wild: {kl: {weight: 1.0e+38}}
"""


def go(tiny: Any, out: Path, methods: str | None = METHODS, **options: Any) -> tuple[Comparison, list[str]]:
    lines: list[str] = []
    options = {"seeds": 2, **options}
    found = compare_methods(tiny.recipe, methods, data=tiny.root, out=out, echo=lines.append, **options)
    return found, lines


def figures(found: Comparison) -> dict[str, Any]:
    """What does not depend on the clock and the machine."""
    rows = [found.data["control"], *found.data["methods"]]
    keys = ("status", "per_seed", "gain", "interval", "verdict", "reason", "steps")
    return {row["method"]: {key: row[key] for key in keys} for row in rows}


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    found = sorted(folder.glob("**/checkpoints/*/last.safetensors"))
    return {str(path.relative_to(folder)): load_file(path) for path in found}


def same_weights(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert first
    return all(torch.equal(first[cell][name], second[cell][name]) for cell in first for name in first[cell])


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects text and links."""

    VOID = ("meta", "img", "br", "circle", "line", "rect", "polyline", "polygon")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_comparison_leaves_tables_a_page_and_a_report_a_method(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found, lines = go(tiny, out)
    names = METHODS.split(",")
    data = json.loads((out / "comparison.json").read_text())
    assert data == found.data
    assert sorted(row["method"] for row in data["methods"]) == sorted(names)
    gains = [row["gain"] for row in data["methods"]]
    assert gains == sorted(gains, reverse=True)
    for row in data["methods"]:
        assert row["interval"][0] <= row["gain"] <= row["interval"][1]
        assert row["verdict"] in ("better", "same", "worse")
        assert row["seconds_per_step"] > 0
        assert row["peak_memory_bytes"] > 1e7
        assert row["gain"] == pytest.approx(row["mean"] - data["control"]["mean"])
        own = json.loads((out / "methods" / row["method"] / "result.json").read_text())
        for key in ("gain", "interval", "verdict"):
            assert own[key] == row[key]
    table = list(csv.DictReader(io.StringIO((out / "comparison.csv").read_text())))
    assert sorted(row["method"] for row in table) == sorted([*names, "control"])
    assert float(table[0]["gain"]) == gains[0]
    assert {"accuracy_seed_0", "accuracy_seed_1", "interval_low", "peak_memory_bytes"} <= set(table[0])
    text = (out / "comparison.md").read_text()
    for name in (*names, "control"):
        assert f"\n| {name} |" in text
        assert name in found.table()
    page = Page(found.page.read_text())
    words = " ".join(page.words)
    assert all(name in words for name in names)
    assert "Spearman" in words
    assert page.links
    assert all((out / link).is_file() for link in page.links)
    assert sum("finished already" in line for line in lines) == 1


def test_every_method_is_trained_as_a_run_of_its_own_would_train_it(tiny: Any, tmp_path: Path) -> None:
    found, _ = go(tiny, tmp_path / "out", "attention_transfer")
    recipe = tmp_path / "out" / "methods" / "attention_transfer" / "recipe.yaml"
    alone = run(recipe, data=tiny.root, out=tmp_path / "alone", echo=lambda line: None)
    assert alone.gain == found.data["methods"][0]["gain"]
    for arm, place in (("control", "control"), ("student", "methods/attention_transfer")):
        for seed in (0, 1):
            path = f"checkpoints/{arm}-{seed}/last.safetensors"
            one, two = load_file(tmp_path / "out" / place / path), load_file(tmp_path / "alone" / path)
            assert all(torch.equal(one[name], two[name]) for name in one)


def test_broken_methods_are_rows_and_stop_no_other(tiny: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.yaml"
    rows.write_text(ROWS)
    found, lines = go(tiny, tmp_path / "out", "kl", rows=rows)
    by_name = {row["method"]: row for row in found.data["methods"]}
    assert found.failed == ["nowhere", "wild"]
    assert by_name["kl"]["status"] == by_name["hot"]["status"] == "done"
    assert by_name["nowhere"]["reason"].startswith("distill.hint.layers: the student has no layer 'absent'")
    assert by_name["wild"]["reason"].startswith("seed 0: train: the loss is not finite at step")
    assert any("wild-0" in line and "failed" in line for line in lines)
    assert not any("wild-1" in line for line in lines)
    assert "failed: nowhere: distill.hint.layers" in found.table()
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text())))
    assert [row["method"] for row in table if row["status"] == "failed"] == ["nowhere", "wild"]
    words = " ".join(Page(found.page.read_text()).words)
    assert "the student has no layer 'absent'" in words


def test_what_is_finished_is_not_trained_again_and_more_may_join(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(tiny, out, "kl")
    before = {path: path.stat().st_mtime_ns for path in out.glob("**/checkpoints/*/*")}
    assert before
    more, lines = go(tiny, out, "kl,feature_mse", seeds=3)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert any("9 cells, 4 finished already, 5 to train" in line for line in lines)
    assert [len(row["per_seed"]) for row in more.data["methods"]] == [3, 3]
    assert json.loads((out / "methods" / "kl" / "result.json").read_text())["seeds"] == 3
    again, lines = go(tiny, out, "kl,feature_mse", seeds=3)
    assert again.table() == more.table()
    assert any("0 to train" in line for line in lines)


def test_a_killed_comparison_goes_on_to_the_same_end(tiny: Any, tmp_path: Path) -> None:
    settings = ["train.epochs=20", "train.learning_rate=0.01"]
    whole, _ = go(tiny, tmp_path / "whole", overrides=settings)
    assert not whole.failed
    cut = tmp_path / "cut"
    words = ["compare", str(tiny.recipe), "--methods", METHODS, "--seeds", "2"]
    words += [word for setting in settings for word in ("--set", setting)]
    words += ["--data", str(tiny.root), "--out", str(cut)]
    for finished in ("methods/kl/checkpoints/student-0", "methods/attention_transfer/checkpoints/student-0"):
        for_next = cut / finished / "cell.json"
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "potstill",
                *words,
                *(["--jobs", "2"] if "kl" in finished and TWO_CORES.args == (False,) else []),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while process.poll() is None and not for_next.is_file():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in cut.glob("**/cell.json")}
    assert 2 <= len(before) < 8
    resumed, _ = go(tiny, cut, overrides=settings)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    assert figures(resumed) == figures(whole)
    assert same_weights(cut, tmp_path / "whole")


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=TWO_CORES)])
def test_ctrl_c_saves_and_says_how_to_go_on(tiny: Any, tmp_path: Path, jobs: str) -> None:
    words = ["compare", str(tiny.recipe), "--methods", "kl", "--seeds", "2", "--set", "train.epochs=9000"]
    words += ["--data", str(tiny.root), "--out", str(tmp_path / "out"), "--jobs", jobs]
    process = subprocess.Popen(
        [sys.executable, "-m", "potstill", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    running = "methods/kl" if jobs == "2" else "control"
    while process.poll() is None and not list((tmp_path / "out" / running).glob("**/step-*.pt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("interrupted, and saved; go on with: potstill compare ")
    assert list((tmp_path / "out" / running).glob("**/step-*.pt"))
    assert not list((tmp_path / "out").glob("**/cell.json"))


@TWO_CORES
def test_two_at_once_end_as_one_after_the_other(tiny: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.yaml"
    rows.write_text(ROWS)
    one, _ = go(tiny, tmp_path / "one", rows=rows)
    two, lines = go(tiny, tmp_path / "two", rows=rows, jobs=2)
    assert figures(one) == figures(two)
    assert same_weights(tmp_path / "one", tmp_path / "two")
    assert any("hot-1" in line and "on the test part" in line for line in lines)


def test_one_seed_gives_no_verdict_and_says_why(tiny: Any, tmp_path: Path) -> None:
    found, _ = go(tiny, tmp_path / "out", "kl", seeds=1)
    row = found.data["methods"][0]
    assert row["verdict"] is None
    assert row["spread"] is None
    assert row["gain"] is not None
    assert "one seed" in row["reason"]
    assert "no verdict" in found.table()
    assert "no verdict" in " ".join(Page(found.page.read_text()).words)


def test_the_command_says_in_its_exit_code_that_a_method_failed(tiny: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.yaml"
    rows.write_text(ROWS)
    words = ["compare", str(tiny.recipe), "--data", str(tiny.root), "--out", str(tmp_path / "out")]
    words += ["--seeds", "1"]
    done = CliRunner().invoke(app, [*words, "--methods", "kl"])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'out' / 'comparison.html'}"
    failed = CliRunner().invoke(app, [*words, "--rows", str(rows)])
    assert failed.exit_code == 1
    assert failed.stderr.splitlines()[-1] == "failed: nowhere, wild; the table says why"
    (tmp_path / "out" / "comparison.html").unlink()
    drawn = CliRunner().invoke(app, ["report", str(tmp_path / "out")])
    assert drawn.exit_code == 0
    assert (tmp_path / "out" / "comparison.html").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "kll"}, "--methods: no such method 'kll'; did you mean 'kl'?"),
        (
            {"methods": "kl+atention_transfer"},
            "no such method 'atention_transfer'; did you mean 'attention_tr",
        ),
        ({"methods": "kl,kl"}, "--methods: 'kl' occurs twice"),
        ({"methods": "kl+kl"}, "'kl' occurs twice in 'kl+kl'"),
        ({"methods": None}, "--methods: missing"),
        ({"seeds": 0}, "--seeds: must be >= 1, got 0"),
        ({"jobs": 0}, "--jobs: must be >= 1, got 0"),
        ({"jobs": 10_000}, "--jobs: must be at most the "),
        ({"overrides": ["distill.kl.temperature=2"]}, "distill is replaced by each method's own"),
        ({"rows": Path("absent.yaml")}, "--rows: expected a file of named distill blocks, got absent.yaml"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    tiny: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        go(tiny, tmp_path / "out", **options)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hot: {kl: {temprature: 8}}",
            "hot: distill.kl.temprature: unknown option; did you mean 'temperature'?",
        ),
        ("'a/b': {kl: {}}", "expected a name of letters, digits and _ . + = -"),
        ("control: {kl: {}}", "that is not control or teacher"),
        ("empty: {}", "empty: expected a distill block such as {kl: {}}, got {}"),
        ("labels: {labels: {weight: 1}}", "labels: nothing is matched; that is what the control is for"),
        ("kl: {kl: {temperature: 8}}", "'kl' is named by --methods too"),
        ("hot: {kl: {}}\nhot: {kl: {}}", "key occurs twice"),
        ("- kl", "expected a mapping of keys"),
    ],
)
def test_mistakes_in_a_file_of_rows(tmp_path: Path, text: str, message: str) -> None:
    rows = tmp_path / "rows.yaml"
    rows.write_text(text)
    with pytest.raises(UserError) as caught:
        line_up("kl", rows)
    assert message in str(caught.value)


def test_a_folder_of_another_comparison_is_refused(tiny: Any, tmp_path: Path) -> None:
    out, rows = tmp_path / "out", tmp_path / "rows.yaml"
    rows.write_text("mine: {kl: {temperature: 8}}")
    go(tiny, out, None, rows=rows, seeds=1)
    with pytest.raises(UserError, match="belongs to a run of another recipe: 'epochs"):
        go(tiny, out, None, rows=rows, seeds=1, overrides=["train.epochs=3"])
    rows.write_text("mine: {kl: {temperature: 4}}")
    with pytest.raises(UserError, match="another recipe: 'temperature: 8' there, 'temperature: 4' here"):
        go(tiny, out, None, rows=rows, seeds=1)


def test_a_control_that_fails_ends_the_comparison(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"control-0 .*: train: the loss is not finite"):
        go(tiny, tmp_path / "out", "kl", overrides=["train.learning_rate=1.0e+30"])


def test_how_far_an_order_can_be_trusted() -> None:
    agreeing = ranking_trust([[0.1, 0.2, 0.1], [0.3, 0.3, 0.2], [0.4, 0.6, 0.9]])
    assert agreeing["between_seeds"] == agreeing["of_means"] == 1.0
    assert "much the same" in agreeing["words"]
    # ranks 1 2 3 against 1 3 2: 1 - 6 * (0 + 1 + 1) / (3 * 8) = 0.5, and for two seeds 2 * 0.5 / 1.5
    half = ranking_trust([[0.1, 0.1], [0.2, 0.3], [0.3, 0.2]])
    assert half["between_seeds"] == 0.5
    assert half["of_means"] == pytest.approx(2 / 3)
    assert "neighbours" in half["words"]
    opposed = ranking_trust([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]])
    assert opposed["between_seeds"] == -1.0
    assert "chance" in opposed["words"]
    for unknown in ([[0.1, 0.2], [0.2, 0.1]], [[0.1], [0.2], [0.3]], [[0.1, 0.2], [0.1, 0.3], [0.1, 0.4]]):
        assert ranking_trust(unknown)["between_seeds"] is None
