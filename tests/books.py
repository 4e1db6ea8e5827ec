"""A book of a small grammar: what tests of language models read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

__all__ = ["book", "recipe_beside_a_book"]


def book() -> str:
    """Documents of a small grammar: what follows is often sure, and never learnt by heart."""
    random = np.random.default_rng(0)
    words = ["barley", "mash", "wort", "yeast", "still", "cask"]
    lines = []
    for number in range(40):
        chosen = random.choice(words, 12)
        lines.append(f"# {number}\n" + " ".join(f"{one} of {one}" for one in chosen) + "\n")
    return "".join(lines)


def recipe_beside_a_book(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's file with the book in the same folder, which becomes the working one."""
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    monkeypatch.chdir(folder)
    (folder / "book.txt").write_text(book(), encoding="utf-8")
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file
