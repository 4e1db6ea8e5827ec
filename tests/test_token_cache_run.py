"""Runs of a language model whose teacher's words are kept: drawn or likeliest, and the teacher left away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from potstill.assembly import language
from potstill.errors import UserError
from potstill.models.characters import character_tokenizer, tiny_llama
from potstill.models.weights import save_weights
from potstill.run import run
from tests.books import book

RECIPE = """task: language_modeling
data: {path: book.txt, split_at: "^# ", tokenizer: characters, max_length: 32}
teacher:
  model: "potstill.models.characters:tiny_llama"
  arguments: {layers: 2, hidden: 32, heads: 2}
  weights: teacher.safetensors
  cache: {path: cache, bytes: 24}
student: {model: "potstill.models.characters:tiny_llama", arguments: {layers: 1, hidden: 16, heads: 2}}
distill: {labels: {weight: 0.3}, kl: {weight: 0.7, temperature: 1}}
train: {epochs: 1, batch_size: 4, optimizer: adamw, learning_rate: 0.01, precision: float32}
"""


def save_teacher(folder: Path, layers: int = 2) -> None:
    """A little trained: better than nothing, and seldom sure."""
    torch.manual_seed(0)
    tokenizer = character_tokenizer(book())
    model = tiny_llama(len(tokenizer), layers=layers, hidden=32, heads=2)
    ids = torch.tensor(tokenizer(book())["input_ids"][:1280]).view(-1, 32)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    save_weights(model, folder / "teacher.safetensors", {})


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(book(), encoding="utf-8")
    save_teacher(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def go(recipe: Path, name: str, *overrides: str, **options: Any) -> tuple[dict[str, Any], list[str], Path]:
    lines: list[str] = []
    result = run(
        recipe, out=recipe.parent / name, overrides=overrides, control=False, echo=lines.append, **options
    )
    return result.data, lines, result.folder


@pytest.mark.parametrize("words", ["drawn", "likeliest"])
def test_a_full_cache_gives_the_same_student_without_its_teacher(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    kept = f"teacher.cache.words={words}"
    first, lines, filling = go(recipe, "filling", kept)
    told = next(line for line in lines if line.startswith("cache: full"))
    assert f"bytes a token ({words}" in told
    assert "gradient off by" in told
    header = json.loads((recipe.parent / "cache/all-seeds/header.json").read_text())
    assert header["identity"]["temperature"] == "1"
    assert header["fidelity"]["unbiased"] == (words == "drawn")
    assert header["fields"][0]["code"].startswith(words)
    made = language.network_of

    def only_students(config: Any, tokenizer: Any, search: Any, where: str) -> Any:
        assert where != "teacher", "it is not loaded"
        return made(config, tokenizer, search, where)

    monkeypatch.setattr(language, "network_of", only_students)
    again, _, full = go(recipe, "full", kept)
    ours, theirs = (load_file(folder / "student.safetensors") for folder in (filling, full))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "writing" not in again["models"]["teacher"]
    del first["models"]["teacher"]["writing"]  # it takes the network
    assert again["models"]["teacher"] == first["models"]["teacher"] | {
        key: again["models"]["teacher"][key] for key in again["models"]["teacher"] if "teacher" in key
    }
    assert again["models"]["student"]["agreement"] == first["models"]["student"]["agreement"]
    assert "kl_to_teacher" not in again["models"]["student"]
    assert "kl_to_teacher" in first["models"]["student"]


def test_it_is_filled_beforehand_and_foreseen(recipe: Path) -> None:
    _, lines, _ = go(recipe, "dry", dry=True)
    assert any(line.startswith("cache: empty yet") and "24 bytes a token (drawn" in line for line in lines)
    assert not (recipe.parent / "cache").exists()
    _, lines, _ = go(recipe, "only", only="cache")
    assert any(line.startswith("cache: full") for line in lines)
    _, lines, _ = go(recipe, "dry", dry=True)
    assert any("its cache is full: it is not loaded" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "fact"),
    [
        ("distill.kl.temperature=2", "temperature"),
        ("data.max_length=24", "data"),
        ("data.packing=false", "data"),
        ("teacher.arguments.layers=1", "teacher"),
        ("teacher.cache.words=likeliest", "words"),
    ],
)
def test_another_run_is_refused_with_both_fingerprints(recipe: Path, override: str, fact: str) -> None:
    go(recipe, "first", only="cache")
    if fact == "teacher":
        size = len(character_tokenizer(book()))
        save_weights(
            tiny_llama(size, layers=1, hidden=32, heads=2), recipe.parent / "teacher.safetensors", {}
        )
    with pytest.raises(UserError, match=f"made for another {fact}: .*fingerprints [0-9a-f]+ and [0-9a-f]+"):
        go(recipe, "second", override)


def test_another_tokenizer_of_the_same_tokens_is_refused(recipe: Path) -> None:
    go(recipe, "first", only="cache")
    other = character_tokenizer(book())
    other.chat_template = "{{ messages }}"
    other.save_pretrained(recipe.parent / "other")
    with pytest.raises(
        UserError, match=r"made for another tokenizer: .*fingerprints [0-9a-f]+ and [0-9a-f]+"
    ):
        go(recipe, "second", "data.tokenizer=other")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill={reverse_kl: {}}", r"teacher\.cache\.words: drawn serves kl alone"),
        ("distill={logit_mse: {}}", r"teacher\.cache: keeps some words .* distill\.logit_mse needs all"),
        ("distill={kl: {temperature: 1}, two: {loss: kl, temperature: 2}}", "one temperature"),
        ("teacher.cache.top=5", r"teacher\.cache\.top: is for classes"),
        ("teacher.cache.bytes=4", r"teacher\.cache\.bytes: must be >= 8"),
    ],
)
def test_what_stored_words_cannot_serve_is_named(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        go(recipe, "refused", override)


def test_a_corrected_teacher_is_kept_and_not_corrected_again(recipe: Path) -> None:
    correction = "correct={steps: 5, learning_rate: 0.01}"
    first, _, _ = go(recipe, "first", correction)
    again, _, folder = go(recipe, "again", correction)
    assert again["models"]["teacher"]["perplexity"] == first["models"]["teacher"]["perplexity"]
    assert not (folder / "checkpoints" / "teacher").exists()
    with pytest.raises(UserError, match="the teacher is corrected in a run first"):
        go(recipe, "only", correction, only="cache")
    with pytest.raises(UserError, match="another correction"):
        go(recipe, "other", "correct={steps: 6, learning_rate: 0.01}")
