"""A user's own code by name: files, their siblings, modules beside the data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from potstill.errors import UserError
from potstill.specs import attribute, find


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("value = 3\n")
    (tmp_path / "mine.py").write_text("from neighbour_of_mine import value\n")
    assert attribute("mine.py:value", [tmp_path], "key") == 3


def test_an_edited_file_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class One:\n    value = 1\n")
    first = attribute("mine.py:One", [tmp_path], "key")
    assert attribute("mine.py:One", [tmp_path], "key") is first
    (tmp_path / "mine.py").write_text("class One:\n    value = 2\n")
    os.utime(tmp_path / "mine.py", ns=(1, 1))
    assert attribute("mine.py:One.value", [tmp_path], "key") == 2


def test_a_module_in_a_searched_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "module_of_this_test.py").write_text("value = 4\n")
    assert attribute("module_of_this_test:value", [tmp_path], "key") == 4
    with pytest.raises(UserError, match="key: cannot import 'module_of_no_test'"):
        attribute("module_of_no_test:value", [tmp_path], "key")


def test_the_first_folder_wins_and_a_miss_says_where_it_looked(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    folders = [tmp_path / "a", tmp_path / "b"]
    assert find("x.txt", folders, "key") == tmp_path / "a" / "x.txt"
    with pytest.raises(UserError, match=r"key: 'y\.txt' not found; looked for .*a/y\.txt.*b/y\.txt"):
        find("y.txt", folders, "key")
