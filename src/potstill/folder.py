"""The run folder: who owns it, and the names of the files in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill import distributed
from potstill.config import ImageRecipe, Recipe, dump, load
from potstill.errors import UserError
from potstill.files import read_json, write_json, write_text

__all__ = ["RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """One run on disk.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions, processor, and where relative paths were looked up."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One line a logged step or epoch."""
        return self.path / "metrics.jsonl"

    @property
    def student(self) -> Path:
        """Weights of the trained student."""
        return self.path / "student.safetensors"

    @property
    def architecture(self) -> Path:
        """How the student differs from the network that the recipe names, where parts were removed."""
        return self.path / "architecture.json"

    @property
    def early_exit(self) -> Path:
        """Thresholds of the student's early exits, and what is promised of them."""
        return self.path / "early_exit.json"

    @property
    def importance(self) -> Path:
        """Scores of what may be pruned, and the page about them."""
        return self.path / "importance"

    @property
    def result(self) -> Path:
        """The result for machines; it is written last but for the report."""
        return self.path / "result.json"

    @property
    def content(self) -> Path:
        """What the report is drawn from."""
        return self.path / "report.json"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def views(self) -> Path:
        """A picture of what the networks see, where the recipe augments."""
        return self.path / "views.png"

    def cell(self, name: str) -> Path:
        """Checkpoints and final weights of one arm and seed."""
        return self.path / "checkpoints" / name

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return self.result.is_file()

    @property
    def unclaimed(self) -> bool:
        """Whether nothing is there yet, but for the picture of a dry run and scores."""
        if self.path.exists() and not self.path.is_dir():
            return False
        return not self.path.is_dir() or all(
            path in (self.views, self.importance) for path in self.path.iterdir()
        )

    def claim(self, recipe: Recipe, environment: dict[str, Any], *, resume: bool) -> None:
        """Make the folder this run's own, on the main rank.

        Raises:
            UserError: If it is a file, belongs to another run, holds other files, or cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(str(self.path), "expected a folder for the run, got a file")
        if self.recipe.is_file():
            if not resume:
                raise UserError(
                    str(self.path), "belongs to a run already; go on with --resume or name another --out"
                )
            self.check_same(recipe)
            distributed.barrier()
            return
        if not self.unclaimed:
            raise UserError(
                str(self.path), "expected a new or empty folder, got one with other files; name another"
            )
        distributed.barrier()
        if distributed.is_main():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(str(self.path), f"cannot make the run folder: {error.strerror}") from error
            write_json(self.environment, environment)
            write_text(self.recipe, dump(recipe))
        distributed.barrier()

    def settled(self, recipe: Recipe) -> Recipe:
        """The recipe with what ``auto`` became in this run: the precision, a generator's width.

        As it is where nothing has begun here.
        """
        there = load(self.recipe) if self.recipe.is_file() else recipe
        if recipe.train.precision == "auto":
            recipe = replace(recipe, train=replace(recipe.train, precision=there.train.precision))
        if (
            isinstance(recipe, ImageRecipe)
            and isinstance(there, ImageRecipe)
            and recipe.student.width == "auto"
        ):
            recipe = replace(recipe, student=replace(recipe.student, width=there.student.width))
        return recipe

    def check_same(self, recipe: Recipe) -> None:
        """Refuse to go on with a run of another recipe; ``auto`` stands for what it became.

        Raises:
            UserError: With the first line that differs.
        """
        there, recipe = load(self.recipe), self.settled(recipe)
        old, new = dump(there).splitlines(), dump(recipe).splitlines()
        for before, after in zip(old, new, strict=False):
            if before != after:
                raise UserError(
                    str(self.path),
                    f"belongs to a run of another recipe: '{before.strip()}' there, '{after.strip()}' here",
                )
        if len(old) != len(new):
            raise UserError(str(self.path), "belongs to a run of another recipe")

    def read_result(self) -> dict[str, Any]:
        """The contents of ``result.json``.

        Raises:
            UserError: If the folder is no finished run, or its result is damaged.
        """
        if not self.path.is_dir():
            raise UserError(str(self.path), "no such run folder")
        if not self.recipe.is_file():
            raise UserError(str(self.path), "expected a run folder (with recipe.yaml), got another folder")
        if not self.finished:
            raise UserError(str(self.path), "this run is not finished; go on with potstill run ... --resume")
        return read_json(self.result)
