"""Records of one width on disk, one for each sample and view; each carries a checksum of its own.

A file holds one view of a range of samples. Nothing else is written: what a file lacks reads as zeros, and
zeros are no record. So several processes may fill it at once, each other samples; one that is killed loses at
most the record it was writing; and of a torn, truncated or damaged file only what is damaged is made again.
The checksum covers the record, its sample and view, and what the whole store is for.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Store"]

CHECK = 4
FILE_BYTES = 1 << 28
VERIFIED_BYTES = 1 << 24
BINARY = getattr(os, "O_BINARY", 0)

Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]


class Store:
    """Records on disk.

    Args:
        folder: Where the files are, and are made.
        samples: Number of samples.
        size: Bytes of a record without its checksum; an even number.
        key: What the store is for; records of another are none.
        file_bytes: Largest size of a file.

    Attributes:
        damaged: Records that were neither whole nor blank, counted as they were read.

    >>> import tempfile
    >>> store = Store(Path(tempfile.mkdtemp()), samples=5, size=2, key="example")
    >>> store.write(0, np.array([3, 1]), np.array([[7, 7], [8, 8]], np.uint8))
    >>> store.read(0, np.array([1, 2]))
    (array([[8, 8],
           [0, 0]], dtype=uint8), array([ True, False]))
    """

    def __init__(
        self, folder: Path, *, samples: int, size: int, key: str, file_bytes: int = FILE_BYTES
    ) -> None:
        assert size % 2 == 0, "records are checked two bytes at a time"
        self.folder, self.samples, self.size = folder, samples, size
        self.width = size + CHECK
        self.rows = max(1, file_bytes // self.width)
        self.damaged = 0
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest())
        draws = np.asarray(np.random.PCG64(seed).random_raw(size // 2 + 3), np.uint64)
        self._factors = draws | np.uint64(1)
        self._files: dict[tuple[int, int], _File] = {}

    def read(self, view: int, index: Index) -> tuple[Bytes, NDArray[np.bool_]]:
        """Records and whether each is there.

        Args:
            view: Number of the view.
            index: Samples ``(N,)``, in any order.

        Returns:
            ``(N, size)`` bytes, and ``(N,)``, false where a record is missing or damaged.
        """
        whole = np.zeros((len(index), self.width), np.uint8)
        for number, places in self._by_file(index):
            rows, wanted = self._file(view, number).rows, index[places] - number * self.rows
            inside = wanted < len(rows)
            whole[places[inside]] = rows[wanted[inside]]
        records = whole[:, : self.size]
        checks = whole[:, self.size :].copy().view("<u4")[:, 0]
        there = checks != 0
        there[there] = checks[there] == self._check(records[there], view, index[there])
        self.damaged += int((~there & whole.any(axis=1)).sum())
        return records, there

    def write(self, view: int, index: Index, records: Bytes) -> None:
        """Write records ``(N, size)`` of samples ``(N,)``.

        Raises:
            OSError: If the disk is full, or the place cannot be written.
        """
        checks = self._check(records, view, index).astype("<u4").view(np.uint8).reshape(-1, CHECK)
        whole = np.concatenate([records, checks], axis=1)
        for number, places in self._by_file(index):
            self._file(view, number).write(index[places] - number * self.rows, whole[places])

    def missing(self, view: int) -> Index:
        """Samples whose record of ``view`` is missing or damaged; every record is read."""
        step = max(1, VERIFIED_BYTES // self.width)
        parts = [np.arange(begin, min(begin + step, self.samples)) for begin in range(0, self.samples, step)]
        return np.concatenate([part[~self.read(view, part)[1]] for part in parts])

    def sync(self) -> None:
        """Make what was written last through a power cut."""
        for file in self._files.values():
            file.sync()

    def _check(self, records: Bytes, view: int, index: Index) -> NDArray[np.uint32]:
        """Checksums ``(N,)``, never 0: the upper half of a multilinear hash (Carter, Wegman 1979)."""
        words = np.ascontiguousarray(records).view("<u2").astype(np.uint64)
        place = np.stack([np.ones_like(index), index, np.full_like(index, view)], axis=1).astype(np.uint64)
        total = words @ self._factors[:-3] + place @ self._factors[-3:]
        return np.maximum((total >> np.uint64(32)).astype(np.uint32), 1)

    def _by_file(self, index: Index) -> Iterator[tuple[int, Index]]:
        """Number of a file, and which of ``index`` it holds."""
        numbers = index // self.rows
        for number in np.unique(numbers):
            yield int(number), np.flatnonzero(numbers == number)

    def _file(self, view: int, number: int) -> _File:
        if (view, number) not in self._files:
            path = self.folder / f"view{view:03d}-{number:04d}.bin"
            count = min(self.rows, self.samples - number * self.rows)
            self._files[view, number] = _File(path, count, self.width)
        return self._files[view, number]


class _File:
    """One file: read through a map of memory, written by calls that tell when the disk is full."""

    def __init__(self, path: Path, count: int, width: int) -> None:
        self.path, self.count, self.width = path, count, width
        self._writable: int | None = None
        self._rows: Bytes | None = None

    @property
    def rows(self) -> Bytes:
        """The rows that are there, ``(n, width)``: fewer than ``count`` where the file was cut short."""
        if self._rows is None:
            if not self.path.exists():
                return np.zeros((0, self.width), np.uint8)
            handle = os.open(self.path, os.O_RDONLY | BINARY)
            try:
                count = min(self.count, os.fstat(handle).st_size // self.width)
                if count == 0:
                    return np.zeros((0, self.width), np.uint8)
                mapped = mmap.mmap(handle, count * self.width, access=mmap.ACCESS_READ)
            finally:
                os.close(handle)
            self._rows = np.frombuffer(mapped, np.uint8).reshape(count, self.width)
        return self._rows

    def write(self, rows: Index, content: Bytes) -> None:
        """Put rows of ``content`` at ``rows``, neighbours in one call."""
        handle = self._opened()
        order = np.argsort(rows, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
            block = content[run].tobytes()
            os.lseek(handle, int(rows[run[0]]) * self.width, os.SEEK_SET)
            if os.write(handle, block) != len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _opened(self) -> int:
        """A handle to write with; the file is made, or its missing end, which takes no room until then."""
        if self._writable is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | BINARY, 0o644)
            weakref.finalize(self, os.close, handle)
            if os.fstat(handle).st_size < self.count * self.width:
                os.ftruncate(handle, self.count * self.width)
                self._rows = None
            self._writable = handle
        return self._writable

    def sync(self) -> None:
        """Flush to the disk."""
        if self._writable is not None:
            os.fsync(self._writable)
