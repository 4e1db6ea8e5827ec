"""Files that are whole or not there: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.errors import UserError

__all__ = ["read_json", "sha256", "write_atomic", "write_bytes", "write_json", "write_once", "write_text"]

CHUNK = 1 << 20


@contextlib.contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Give a path to write aside; when the block ends well it takes the place of ``path``.

    Missing folders are made. If the block fails, what was written is removed and ``path`` is as before.

    Args:
        path: Where the finished file shall stand.

    Yields:
        A path in the same folder, with the same suffix.

    Raises:
        UserError: If the disk is full or the place cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with write_atomic(Path(folder, "a.txt")) as aside:
        ...         _ = aside.write_text("whole")
        ...     Path(folder, "a.txt").read_text()
        'whole'
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(str(path), _reason(error)) from error
        wrapped = re.search(r"\(os error (\d+)\)", str(error))
        if wrapped:  # safetensors puts the system's error into one of its own
            code = int(wrapped.group(1))
            raise UserError(str(path), _reason(OSError(code, os.strerror(code)))) from error
        raise


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "cannot write: the disk is full"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "cannot write: no permission"
    return f"cannot write: {error.strerror or error}"


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last through a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content``, whole or not at all."""
    with write_atomic(path) as aside:
        aside.write_bytes(content)


def write_once(path: Path, content: bytes) -> bool:
    """Write ``content`` unless the file is there; of several processes at once, one does.

    Returns:
        Whether it was written here.

    Raises:
        UserError: If the disk is full or the place cannot be written.
    """
    first = path.with_name(f".{path.stem}.{os.getpid()}.first{path.suffix}")
    write_bytes(first, content)
    try:
        os.link(first, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(str(path), _reason(error)) from error
    finally:
        first.unlink()
    return True


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that :func:`write_json` wrote.

    Raises:
        UserError: If the file is gone, damaged or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(str(path), f"expected a JSON object, got {type(value).__name__}")
    return value


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
