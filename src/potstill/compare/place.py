"""The folder of a comparison: a run folder a method, and one for the control that all of them share.

recipe.yaml, environment.json     what all cells have in common
teacher.json, teacher-test.npy    the teacher's accuracies, and its answers on the test part
control/checkpoints/control-0/    one cell: weights, metrics.jsonl, answers, and cell.json when it is done
methods/kl/                       a run folder as potstill run leaves it, with its student-0, student-1...
comparison.csv, .json, .md, .html
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.cells import Cell
from potstill.compare.lineup import CONTROL
from potstill.config import Recipe, dump, load
from potstill.errors import UserError
from potstill.files import read_json, write_json, write_text
from potstill.folder import RunFolder

__all__ = ["Job", "Place"]

PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Job:
    """One cell to train: a method, or ``control``, and a seed."""

    method: str
    seed: int

    @property
    def cell(self) -> Cell:
        """The cell as a run knows it."""
        return Cell("control" if self.method == CONTROL else "student", self.seed)

    @property
    def name(self) -> str:
        """``kl-0``, for people."""
        return f"{self.method}-{self.seed}"


@dataclass(frozen=True)
class Place:
    """One comparison on disk.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def teacher(self) -> Path:
        """The teacher's accuracy on validation."""
        return self.path / "teacher.json"

    @property
    def teacher_test(self) -> Path:
        """The teacher's logits on the test part."""
        return self.path / "teacher-test.npy"

    def table(self, suffix: str) -> Path:
        """``comparison.csv`` and its like."""
        return self.path / f"comparison.{suffix}"

    def run(self, method: str) -> RunFolder:
        """The run folder of a method, or of the control."""
        return RunFolder(self.path / CONTROL if method == CONTROL else self.path / "methods" / method)

    def cell(self, job: Job) -> Path:
        """The folder of a cell."""
        return self.run(job.method).cell(job.cell.name)

    def done(self, job: Job) -> bool:
        """Whether a cell was trained and evaluated; its ``cell.json`` is written last."""
        return (self.cell(job) / "cell.json").is_file()

    def figures(self, job: Job) -> dict[str, Any]:
        """The contents of a finished cell's ``cell.json``."""
        return read_json(self.cell(job) / "cell.json")

    def recipe(self, method: str) -> Recipe:
        """The recipe of a method as it was claimed; the control's is the one without terms."""
        return load(RunFolder(self.path).recipe if method == CONTROL else self.run(method).recipe)

    def claim(self, base: Recipe, blocks: Mapping[str, Any], seeds: int, facts: dict[str, Any]) -> None:
        """Make the folder this comparison's own; more methods and seeds may join it later.

        Raises:
            UserError: If it holds something else, or a method of that name with another block.
        """
        own = RunFolder(self.path)
        own.claim(base, facts, resume=True)
        write_json(own.environment, facts)  # of the newest call: data may lie elsewhere than it did
        for name, block in blocks.items():
            mine = replace(base, distill=block, seeds=seeds)
            folder = self.run(name)
            if folder.recipe.is_file():
                folder.check_same(replace(mine, seeds=load(folder.recipe).seeds))
            if not folder.recipe.is_file() or load(folder.recipe).seeds != seeds:
                write_json(folder.environment, facts)
                write_text(folder.recipe, dump(mine))

    @contextmanager
    def locked(self) -> Iterator[int | None]:
        """Keep other processes from working here; the lock ends with the last process that holds it.

        Raises:
            UserError: If another comparison is at work in this folder.
        """
        if sys.platform == "win32":
            yield None
            return
        import fcntl

        with (self.path / ".lock").open("a") as stream:
            until = time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > until:
                        raise UserError(
                            str(self.path), "another process is at work on this comparison; wait for it"
                        ) from error
                    time.sleep(0.1)
            yield stream.fileno()
