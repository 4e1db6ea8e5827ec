"""Labelled texts from files, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from potstill.data.load import DataConfig, load_text_data
from potstill.errors import UserError

ROWS = "text,label\ngood,yes\nbad,no\nfine,yes\npoor,no\n"


def test_csv_with_words_as_labels(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.csv").write_text(ROWS)
    splits = load_text_data(DataConfig(kind="csv", path="."), search=[tmp_path])
    assert splits.train.class_names == ("no", "yes")
    texts, labels, index = splits.test.__getitems__([1, 2])
    assert (texts, labels.tolist(), index.tolist()) == (["bad", "fine"], [0, 1], [1, 2])
    assert splits.train.lengths.tolist() == [4, 3, 4, 4]


def test_missing_parts_are_cut_from_one_file(tmp_path: Path) -> None:
    lines = [f'{{"sentence": "text {number}", "class": {number % 2}}}' for number in range(40)]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    splits = load_text_data(DataConfig(kind="jsonl", path="all.jsonl", validation=0.2), search=[tmp_path])
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [26, 6, 8]
    assert splits.train.class_names == ("0", "1")
    everything = {*splits.train.texts, *splits.validation.texts, *splits.test.texts}
    assert everything == {f"text {number}" for number in range(40)}


def test_a_hugging_face_set_of_local_files(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = {"tongue": [0] * 4, "sentence": ["good", "bad", "fine", "poor"], "label": [1, 0, 1, 0]}
    features = datasets.Features(
        {
            "tongue": datasets.ClassLabel(names=["en", "de", "fr"]),  # classes too, of another kind
            "sentence": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    part = datasets.Dataset.from_dict(table, features=features)
    datasets.DatasetDict({"train": part, "validation": part, "test": part}).save_to_disk(
        str(tmp_path / "set")
    )
    splits = load_text_data(DataConfig(kind="huggingface", path="set"), search=[tmp_path])
    assert splits.validation.class_names == ("no", "yes")
    assert splits.validation.labels.tolist() == [1, 0, 1, 0]


def test_a_name_on_the_hub_goes_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"text": ["good", "bad"] * 6, "label": [1, 0] * 6})
    asked: list[str] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked.append(name) or {"train": part})
    splits = load_text_data(
        DataConfig(kind="huggingface", path="someone/reviews", validation=2), search=[tmp_path]
    )
    assert asked == ["someone/reviews"]
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 12
    with pytest.raises(UserError, match=r"^data.path: 'someone/reviews' not found"):
        load_text_data(DataConfig(kind="csv", path="someone/reviews"), search=[tmp_path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": 0}\n{"text": "b"}\n', r"data.path: .*: sample 2 has no 'label'"),
        ('{"text": "a", "label": 0}\n{"text"', r"data.path: .*, line 2: expected JSON"),
        ("[1, 2]\n", r"data.path: .*, line 1: expected an object, got list"),
        ("", r"data.path: expected samples, got the empty file"),
        ('{"text": "a", "label": 0}\n{"text": " ", "label": 1}\n', "got an empty one at position 1"),
        (
            '{"words": "a", "label": 0}\n',
            r"data.text_column: cannot tell the column; the data has words, label",
        ),
        ('{"text": "a", "label": 0}\n{"text": "b", "label": 0}\n', "expected at least two classes"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        load_text_data(DataConfig(kind="jsonl", path="train.jsonl"), search=[tmp_path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"text": ["a"], "label": 0}\n{"text": "b", "label": 1}\n',
            "expected texts, got list at position 0",
        ),
        ('{"text": 7, "label": 0}\n{"text": "b", "label": 1}\n', "expected texts, got int at position 0"),
        ('{"text": "a", "label": [0]}\n{"text": "b", "label": [1]}\n', "words or numbers, got list"),
        (
            '{"text": "a", "label": 0}\n{"text": "b", "label": 7}\n{"text": "c", "label": 1}\n',
            r"^data.label_column: .*got 8 classes for 3 samples",
        ),
        (
            '{"text": "a", "label": -1}\n{"text": "b", "label": 1}\n{"text": "c", "label": 0}\n',
            r"^data.label_column: expected classes from 0, got -1 in the train part",
        ),
    ],
)
def test_what_is_no_text_or_no_class_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        load_text_data(DataConfig(kind="jsonl", path="train.jsonl"), search=[tmp_path])


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"^data.kind: datasets is not installed: pip install 'potstill\[data\]'"
    ):
        load_text_data(DataConfig(kind="huggingface", path="."), search=[tmp_path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROWS + "so, so,no\n", "sample 5 has more than the 2 columns; a text with commas needs quotes"),
        ("text,label,label\na,1,0\n", "expected columns of different names, got text, label, label"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        load_text_data(DataConfig(kind="csv", path="train.csv"), search=[tmp_path])


def test_a_mark_at_the_beginning_and_spaces_around_a_class_say_nothing(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.csv").write_text(ROWS.replace("bad,no", "bad, no"), encoding="utf-8-sig")
    splits = load_text_data(DataConfig(kind="csv", path="."), search=[tmp_path])
    assert splits.train.class_names == ("no", "yes")
    assert splits.train.labels.tolist() == [1, 0, 1, 0]


def test_a_class_that_training_lacks(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(ROWS)
    (tmp_path / "test.csv").write_text("text,label\nso,maybe\n")
    with pytest.raises(UserError, match=r"^data.label_column: the class 'maybe' of the test part"):
        load_text_data(DataConfig(kind="csv", path="."), search=[tmp_path])
