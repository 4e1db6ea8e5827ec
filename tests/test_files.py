"""Files are whole or not there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from potstill.errors import UserError
from potstill.files import sha256, write_atomic, write_json, write_text


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with write_atomic(target) as aside:
        aside.write_text("whole")
        assert not target.exists()
        assert aside.parent == target.parent
        assert aside.suffix == ".txt"
    assert target.read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with write_atomic(tmp_path / "a.txt") as aside:
            aside.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "no permission"),
        (errno.EIO, "cannot write"),
    ],
)
def test_system_errors_become_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=f"a.txt: .*{message}"):
        write_text(tmp_path / "a.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_the_disk_is_full_also_when_a_library_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the disk is full"), write_atomic(tmp_path / "a.bin"):
        raise RuntimeError("Error while serializing: No space left on device (os error 28)")


def test_json_and_checksums(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Müller", "value": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["name"] == "Müller"
    write_text(tmp_path / "b.txt", "abc")
    assert sha256(tmp_path / "b.txt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
