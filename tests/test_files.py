"""Files are whole or not there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from torch import nn

from potstill.errors import UserError
from potstill.files import read_json, sha256, write_atomic, write_json, write_text
from potstill.models import save_weights


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


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("No space left on device (os error 28)", "the disk is full"),
        ("Permission denied (os error 13)", "no permission"),
        ("File name too long (os error 36)", "File name too long"),
    ],
)
def test_system_errors_that_a_library_wraps_become_words(tmp_path: Path, said: str, message: str) -> None:
    with pytest.raises(UserError, match=f"cannot write: .*{message}"), write_atomic(tmp_path / "a.bin"):
        raise RuntimeError(f"Error while serializing: I/O error: {said}")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that nobody may write in")
def test_weights_in_a_folder_without_permission() -> None:
    with pytest.raises(UserError, match=r"/sys/kernel/w\.safetensors: cannot write: no permission"):
        save_weights(nn.Linear(2, 2), Path("/sys/kernel/w.safetensors"))


def test_json_and_checksums(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Müller", "value": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["name"] == "Müller"
    write_text(tmp_path / "b.txt", "abc")
    assert sha256(tmp_path / "b.txt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_damaged_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for content, said in (("{", "cannot be read"), ("[1]", "expected a JSON object, got list")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=rf"result\.json: {said}"):
            read_json(path)
    with pytest.raises(UserError, match="gone"):
        read_json(tmp_path / "gone.json")
