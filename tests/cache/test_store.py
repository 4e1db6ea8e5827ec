"""Records on disk: found again in any order, and never believed when they are not what was written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from potstill.cache.store import CHECK, Store

SAMPLES, SIZE = 50, 14


def store_in(folder: Path, key: str = "mine", **options: int) -> Store:
    return Store(folder, samples=SAMPLES, size=SIZE, key=key, **{"file_bytes": 18 * 20, **options})


def content(view: int, index: np.ndarray) -> np.ndarray:
    return ((index[:, None] * 7 + np.arange(SIZE) * 3 + view) % 256).astype(np.uint8)


def filled(folder: Path, views: int = 2) -> list[Path]:
    store, everything = store_in(folder), np.arange(SAMPLES)
    for view in range(views):
        store.write(view, everything, content(view, everything))
    return sorted(folder.glob("*.bin"))


def test_what_was_written_is_read_in_any_order_by_anyone(tmp_path: Path) -> None:
    store, order = store_in(tmp_path), np.random.default_rng(0).permutation(SAMPLES)
    for begin in range(0, SAMPLES, 8):
        store.write(3, order[begin : begin + 8], content(3, order[begin : begin + 8]))
    for reader in (store, store_in(tmp_path)):
        asked = np.array([49, 0, 7, 7, 20, 19, 40])
        records, there = reader.read(3, asked)
        assert there.all()
        assert (records == content(3, asked)).all()
        assert len(reader.missing(3)) == 0
        assert len(reader.missing(2)) == SAMPLES
        assert reader.damaged == 0
    assert len(list(tmp_path.iterdir())) == 3  # of 20, 20 and 10 samples


def test_what_was_not_written_is_missing(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert not store.read(0, np.array([1, 2]))[1].any()
    assert not list(tmp_path.iterdir())
    store.write(0, np.array([2, 30]), content(0, np.array([2, 30])))
    assert store.read(0, np.array([1, 2, 3, 30]))[1].tolist() == [False, True, False, True]
    assert store.missing(0).tolist() == [place for place in range(SAMPLES) if place not in (2, 30)]
    assert store.damaged == 0


def test_every_single_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = filled(tmp_path, views=1)[0]
    whole = path.read_bytes()
    width = SIZE + CHECK
    for bit in range(8 * width):
        damaged = bytearray(whole)
        damaged[5 * width + bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        store = store_in(tmp_path)
        assert store.missing(0).tolist() == [5], bit
        assert store.damaged == 1


@pytest.mark.parametrize("how", ["truncated", "torn", "emptied", "removed", "swapped", "zeroed"])
def test_only_what_is_damaged_is_made_again(tmp_path: Path, how: str) -> None:
    first, second, _, other, *_ = filled(tmp_path)
    whole, width = first.read_bytes(), SIZE + CHECK
    expected = list(range(20))
    if how == "truncated":
        first.write_bytes(whole[: 12 * width + 3])
        expected = list(range(12, 20))
    elif how == "torn":
        first.write_bytes(whole[: 12 * width + 3] + bytes(len(whole) - 12 * width - 3))
        expected = list(range(12, 20))
    elif how == "emptied":
        first.write_bytes(b"")
    elif how == "removed":
        first.unlink()
    elif how == "swapped":  # a file of another view, whole in itself
        first.write_bytes(other.read_bytes())
    else:
        first.write_bytes(whole[: 3 * width] + bytes(width) + whole[4 * width :])
        expected = [3]
    store = store_in(tmp_path)
    assert store.missing(0).tolist() == expected
    rows = np.array(expected)
    store.write(0, rows, content(0, rows))
    for reader in (store, store_in(tmp_path)):
        assert len(reader.missing(0)) == len(reader.missing(1)) == 0
        assert (reader.read(0, rows)[0] == content(0, rows)).all()
    assert first.stat().st_size == len(whole)
    assert second.is_file()


def test_records_of_another_store_are_none(tmp_path: Path) -> None:
    filled(tmp_path)
    assert len(store_in(tmp_path, key="theirs").missing(0)) == SAMPLES


def test_a_store_that_may_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    real = os.open

    def read_only(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "no", str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    store = store_in(tmp_path)
    assert len(store.missing(1)) == 0
    with pytest.raises(PermissionError):
        store.write(0, np.array([1]), content(0, np.array([1])))


def test_a_write_that_was_cut_short_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, rows = store_in(tmp_path), np.array([4, 5])
    store.write(0, np.array([1]), content(0, np.array([1])))
    monkeypatch.setattr(os, "write", lambda handle, block: len(block) // 2)
    with pytest.raises(OSError, match="No space left"):
        store.write(0, rows, content(0, rows))


WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from potstill.cache.store import Store
folder, first, step, left = Path(sys.argv[1]), *map(int, sys.argv[2:])
store = Store(folder, samples=5000, size=14, key="mine", file_bytes=18 * 1000)
for view in range(4):
    for begin in range(0, 5000, 64):
        part = np.arange(begin, min(begin + 64, 5000))[first::step]
        part = part[~store.read(view, part)[1]]
        if len(part):
            store.write(view, part, ((part[:, None] + view * 5) % 256 * np.ones(14)).astype(np.uint8))
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
"""


def writers(folder: Path, left: int) -> list[int]:
    """Exit codes of two processes that fill the store together, each killed after ``left`` of its writes."""
    commands = [[sys.executable, "-c", WRITER, str(folder), *map(str, (rank, 2, left))] for rank in (0, 1)]
    both = [subprocess.Popen(command) for command in commands]
    return [process.wait(timeout=120) for process in both]


def test_several_write_at_once_and_may_be_killed(tmp_path: Path) -> None:
    """Whatever is there is whole; the next ones add what is missing."""

    def reader() -> Store:
        return Store(tmp_path, samples=5000, size=14, key="mine", file_bytes=18 * 1000)

    for total, left in ((100, 100), (250, 150)):
        assert writers(tmp_path, left) == [-signal.SIGKILL] * 2
        assert sum(5000 - len(reader().missing(view)) for view in range(4)) in range(60 * total, 68 * total)
    assert writers(tmp_path, -1) == [0, 0]
    for view in range(4):
        rows = np.arange(5000)
        records, there = reader().read(view, rows)
        assert there.all()
        assert (records == (rows[:, None] + view * 5) % 256).all()
