"""The page: what it says, that it is whole, alone, and safe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import UserError
from potstill.report import ReportContent, _material, render
from potstill.report._training import _band
from potstill.report.content import ClassDifference, PairRow, TermRow

MakeRun = Callable[..., Path]
EMPTY = {"meta", "img", "br", "line", "rect", "circle", "polygon", "polyline", "link", "input"}


class Reader(HTMLParser):
    """Reads a page strictly: every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def read(run: Path) -> Reader:
    return Reader(render(run).read_text(encoding="utf-8"))


def sections(page: Reader) -> list[str]:
    return [attributes["id"] or "" for tag, attributes in page.tags if tag == "section"]


def test_a_whole_run_has_every_section(make_run: MakeRun) -> None:
    run = make_run()
    page = read(run)
    assert sections(page) == [
        "set-up",
        "arms",
        "learning",
        "cost",
        "classes",
        "dark-knowledge",
        "calibration",
        "matched",
        "recipe",
    ]
    result = json.loads((run / "result.json").read_text())
    assert result["verdict"] == "better"
    assert "made the student better" in page.text
    assert f"{result['gain'] * 100:+.2f} points" in page.text
    for model in result["models"].values():
        assert f"{model['accuracy'] * 100:.2f} %" in page.text
    assert "853 k" in page.text
    assert "3.10 ms" in page.text
    assert "kl: {weight: 0.9, temperature: 4}" in page.text
    assert "libraries.torch: 2.14.1" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 9
    assert sum(tag == "img" for tag, _ in page.tags) == 8


def test_the_page_asks_nobody_for_anything(make_run: MakeRun) -> None:
    path = render(make_run())
    source = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 5_000_000
    for tag, attributes in Reader(source).tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in source
    assert "@import" not in source
    assert "default-src 'none'" in source


def test_every_string_of_the_user_is_escaped(make_run: MakeRun) -> None:
    evil = "</pre></style><script>alert(1)</script><img src=x onerror='alert(2)'>\"'&"
    names = tuple(f"{evil}{number}" for number in range(10))
    run = make_run(
        names=names,
        title=evil,
        models={"teacher": f"a:{evil}", "student": f"b:{evil}"},
        setup=(evil,),
        notes=(evil,),
        terms=(TermRow(name=evil, loss=evil, weight=1.0, detail=evil),),
        pairs=(
            PairRow(
                term=evil,
                student=evil,
                teacher=evil,
                student_shape=(1,),
                teacher_shape=(1,),
                adapter=evil,
                reason=evil,
            ),
        ),
        result_changes={"reason": evil},
    )
    (run / "recipe.yaml").write_text(evil)
    (run / "environment.json").write_text(json.dumps({evil: [evil]}))
    page = read(run)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all((values.get("src") or "").startswith("data:") for tag, values in page.tags if tag == "img")
    assert page.text.count("alert(1)") > 40


def test_without_a_control_there_is_no_verdict(make_run: MakeRun) -> None:
    page = read(make_run(control=False))
    assert "without a control there is no verdict" in page.text
    assert "No control was trained" in page.text
    assert "classes" not in sections(page)
    assert "Control" not in page.text
    assert not any(attributes.get("class") == "gauge" for _, attributes in page.tags)


def test_one_seed_says_so_and_draws_no_band(make_run: MakeRun) -> None:
    page = read(make_run(seeds=1))
    assert "the spread between runs was not measured" in page.text
    assert "Mean over seeds" not in page.text
    assert not any(tag == "polygon" for tag, _ in page.tags)
    assert any(tag == "polygon" for tag, _ in read(make_run(seeds=2)).tags)


@pytest.mark.parametrize(
    ("skill", "sentence"),
    [(-0.9, "made the student worse : −"), (0.0, "are the same as far as this run can tell : ")],
)
def test_other_verdicts(make_run: MakeRun, skill: float, sentence: str) -> None:
    assert sentence.replace(" :", ":") in read(make_run(skill=skill)).text.replace(" :", ":")


def test_loss_parts_are_drawn_from_the_metrics(make_run: MakeRun) -> None:
    run = make_run()
    page = read(run)
    labels = [attributes.get("aria-label") for tag, attributes in page.tags if tag == "svg"]
    assert "kl during training" in labels
    assert "labels during training" in labels
    assert "attention_transfer during training" not in labels
    (run / "metrics.jsonl").unlink()
    assert "Loss parts" not in read(run).text


@pytest.mark.parametrize("nested", [True, False])
def test_loss_parts_average_what_was_logged(make_run: MakeRun, nested: bool) -> None:
    run = make_run()
    rows = []
    for seed, values in ((0, (4.0, 2.0)), (1, (2.0, 1.0))):
        for step, value in zip((10, 20), values, strict=True):
            parts = {"parts": {"kl": value}} if nested else {"kl": value}
            rows.append({"arm": "student", "seed": seed, "step": step} | parts)
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    band = _band(_material.read(run), "student", "kl")
    assert band is not None
    assert (list(band.x), list(band.mean)) == ([10.0, 20.0], [3.0, 1.5])
    assert (list(band.low), list(band.high)) == ([2.0, 1.0], [4.0, 2.0])


def test_many_classes_are_cut_and_it_is_said(make_run: MakeRun) -> None:
    rows = tuple(
        ClassDifference(
            name=f"class {number}", control=0.5, student=number / 100, interval=(0.0, 0.1), samples=9
        )
        for number in range(100)
    )
    page = read(make_run(differences=rows))
    assert "76 between them are not" in page.text
    assert "class 99 " in page.text
    assert "class 0 " in page.text
    assert "class 50 " not in page.text


def test_a_bare_run_still_has_a_page(make_run: MakeRun) -> None:
    bare: dict[str, Any] = dict.fromkeys(
        ("setup", "samples", "differences", "histories", "terms", "pairs"), ()
    )
    page = read(make_run(details={}, **bare))
    assert sections(page) == ["arms", "cost", "recipe"]


@pytest.mark.parametrize("name", ["report.json", "result.json", "recipe.yaml", "environment.json"])
def test_a_missing_file_is_named(make_run: MakeRun, name: str) -> None:
    run = make_run()
    (run / name).unlink()
    with pytest.raises(UserError, match=name):
        render(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"title": 3}'])
@pytest.mark.parametrize("name", ["report.json", "result.json"])
def test_broken_contents_are_named(make_run: MakeRun, name: str, text: str) -> None:
    run = make_run()
    (run / name).write_text(text)
    with pytest.raises(UserError, match=name):
        render(run)


def test_content_comes_back_as_it_was_saved(make_run: MakeRun, tmp_path: Path) -> None:
    content = ReportContent.load(make_run() / "report.json")
    content.save(tmp_path / "again.json")
    assert ReportContent.load(tmp_path / "again.json") == content
    assert content.pairs[0].student_shape == (16, 32, 32)
    assert content.details["student"].bins


def test_what_does_nothing_and_what_drowns_the_rest_is_said(make_run: MakeRun) -> None:
    run = make_run()
    rows = []
    for arm, parts in (("control", {"labels": 1.0}), ("student", {"labels": 1.0, "kl": 3.0})):
        for seed in range(2):
            for step in range(50, 1001, 50):
                row = {"arm": arm, "seed": seed, "step": step, "parts": parts, "weighted": parts}
                if arm == "student" and step % 200 == 0:
                    row["weighted_gradient_norms"] = {
                        "labels": 1.0,
                        "kl": 12.0,
                        "attention_transfer": 0.002,
                        "idle": float("nan"),
                    }
                rows.append(row)
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = read(run)
    assert (
        "kl drowned the rest: its gradient was 12 times as long as those of all other parts together. "
        "attention_transfer did next to nothing: its gradient was 0.20 % as long as the labels'."
    ) in page.text.replace("\u202f", " ")
    labels = [attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg"]
    assert [label for label in labels if "during training" in label] == [
        "labels during training",
        "labels during training, weighted",
        "labels during training, length of weighted gradient",
        "kl during training",
        "kl during training, weighted",
        "kl during training, length of weighted gradient",
        "attention_transfer during training, length of weighted gradient",
    ]
    for row in rows:
        if "weighted_gradient_norms" in row:
            row["weighted_gradient_norms"] = {"labels": 1.0, "kl": 9.9, "attention_transfer": 0.011}
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = read(run).text
    assert "No part did nothing and none drowned the rest." in text
