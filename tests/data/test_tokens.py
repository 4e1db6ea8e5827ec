"""Which files are read, and how much of each document is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.data.tokens import TextConfig, read_texts, token_splits
from potstill.errors import UserError
from potstill.models.characters import character_tokenizer

LETTERS = "#abcdefghijklmnopqrstuvwxyz? \n"


def books(folder: Path) -> Path:
    """Two files of six documents each."""
    for name in ("valid", "test"):
        text = "".join(f"# {letter}\n{name} of {letter}\n" for letter in "abcdef")
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def test_a_file_of_another_name_is_trained_on_and_is_no_other_part(tmp_path: Path) -> None:
    config = TextConfig(path=".", files={"train": "valid.txt"}, split_at="^# ", validation=2)
    texts = read_texts(config, [books(tmp_path)], 0)
    assert [len(texts.parts[part]) for part in ("train", "validation", "test")] == [4, 2, 6]
    assert all("valid of" in each.text for part in ("train", "validation") for each in texts.parts[part])
    with pytest.raises(UserError, match=r"data\.files\.train: 'vald.txt' not found.*'valid.txt'"):
        read_texts(TextConfig(path=".", files={"train": "vald.txt"}), [tmp_path], 0)


def test_the_beginning_of_each_document_is_measured_and_all_of_it_learnt(tmp_path: Path) -> None:
    config = TextConfig(
        path=".", files={"train": "valid.txt"}, split_at="^# ", max_length=32, measure_tokens=5, validation=2
    )
    made = token_splits(
        read_texts(config, [books(tmp_path)], 0), character_tokenizer(LETTERS), config, together=True
    )
    assert made.train.tokens == 4 * len("# a\nvalid of a\n")  # the end is predicted, the first letter not
    assert (made.validation.tokens, made.test.tokens) == (2 * 4, 6 * 4)
    assert any(
        "test reads the first 5 tokens of each document: 30 of 90 (33%)" in note for note in made.notes
    )


def test_a_question_beyond_what_is_measured_is_told_with_that_key(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": prompt, "response": "yes"}) for prompt in ("is it?", "so? ") * 6]
    for part in ("train", "test"):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    config = TextConfig(path=".", max_length=32, measure_tokens=6, validation=2)
    tokenizer = character_tokenizer(LETTERS)
    made = token_splits(read_texts(config, [tmp_path], 0), tokenizer, config, together=True)
    told = [note for note in made.notes if "have nothing to learn" in note]
    assert len(told) == 2
    assert all("within data.measure_tokens (6 tokens; prompts longer" in note for note in told)
