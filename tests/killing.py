"""A training that ends as a kill would, for tests of what goes on afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from potstill import cells
from potstill.train.observe import Many

__all__ = ["StoppedError", "killed_after"]


class StoppedError(Exception):
    """Stands for a kill."""


class Killing(Many):
    """Ends the training as a kill would, after a step of one arm."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def advance(self, step: int) -> None:
        if step == self.step:
            raise StoppedError


def killed(
    train: Callable[..., Any], step: int, *parts: Any, observer: Any, folder: Path, **given: Any
) -> Any:
    """Train, and end after a step of the student's cell."""
    if folder.name.startswith("student"):
        observer = Many(observer, Killing(step))
    return train(*parts, observer=observer, folder=folder, **given)


@contextmanager
def killed_after(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What trains a student within is killed after a step, and that is expected."""
    with monkeypatch.context() as patch:
        patch.setattr(cells, "train", functools.partial(killed, cells.train, step))
        with pytest.raises(StoppedError):
            yield
