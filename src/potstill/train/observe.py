"""Who watches a training: a progress bar, the metrics file, TensorBoard."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from potstill.errors import UserError
from potstill.files import write_text

__all__ = ["Bar", "Lines", "Many", "MetricsFile", "Observer", "TensorBoard", "make_observer"]

Row = Mapping[str, Any]


class Observer(Protocol):
    """What the loop tells; every call is cheap."""

    def start(self, step: int, total: int) -> None:
        """Training begins, or goes on, after ``step`` of ``total`` steps."""

    def advance(self, step: int) -> None:
        """``step`` steps are done."""

    def log(self, row: Row) -> None:
        """A row: ``step``, ``epoch``, and figures of the loss, validation metrics, or chosen ``weights``."""

    def say(self, line: str) -> None:
        """A line for the user."""

    def finish(self) -> None:
        """Training ended or was interrupted."""


def summary(row: Row) -> str:
    """The named loss parts, or the validation metrics, in one line.

    >>> summary({"step": 3, "parts": {"labels": 0.5, "kl": 1.25}})
    'labels 0.5, kl 1.25'
    """
    values = row.get("parts") or {name: row[name] for name in ("accuracy", "loss") if name in row}
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


class Bar:
    """A progress bar with rate, time left and the newest loss parts.

    Args:
        title: What is trained.
    """

    def __init__(self, title: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[parts]}", markup=False),  # a user names the parts
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(title, start=False, rate="", parts="")
        self._title = title

    def start(self, step: int, total: int) -> None:
        """Show the bar."""
        self._progress.update(self._task, total=total, completed=step)
        self._progress.start_task(self._task)
        self._progress.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step)

    def log(self, row: Row) -> None:
        """Show the newest parts and rate."""
        rate = f"{row['samples_per_second']:.0f}/s" if "samples_per_second" in row else None
        shown = {"parts": summary(row) or None, "rate": rate}
        fields = {name: text for name, text in shown.items() if text is not None}
        self._progress.update(self._task, **fields)  # type: ignore[arg-type]

    def say(self, line: str) -> None:
        """Print above the bar."""
        self._progress.console.print(line, markup=False, highlight=False)

    def finish(self) -> None:
        """Leave the finished bar on the screen."""
        self._progress.stop()


class Lines:
    """A line of text about ten times a training, where the output is no terminal.

    Args:
        title: What is trained.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._total = 1
        self._shown = -1

    def start(self, step: int, total: int) -> None:
        """Remember the length."""
        self._total = total
        self._shown = 10 * step // total

    def advance(self, step: int) -> None:
        """Nothing: lines come with figures."""

    def log(self, row: Row) -> None:
        """A line when another tenth is done."""
        tenth = 10 * row["step"] // self._total
        if tenth > self._shown and row.get("parts"):
            self._shown = tenth
            self.say(f"{self.title}: step {row['step']}/{self._total}, {summary(row)}")

    def say(self, line: str) -> None:
        """Print it."""
        print(line, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Nothing to close."""


class MetricsFile:
    """``metrics.jsonl``: one row a line, appended; rows after the checkpoint are dropped on resume.

    Args:
        path: The file, shared by all cells of a run.
        arm: ``control`` or ``student``.
        seed: Seed of the cell.
    """

    def __init__(self, path: Path, arm: str, seed: int) -> None:
        self.path = path
        self.arm = arm
        self.seed = seed

    def start(self, step: int, total: int) -> None:
        """Drop this cell's rows after ``step``, and a last line that was torn."""
        del total
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            mine = (row.get("arm"), row.get("seed")) == (self.arm, self.seed)
            if not (mine and row.get("step", 0) > step):
                kept.append(line)
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def advance(self, step: int) -> None:
        """Nothing: steps are logged in rows."""

    def log(self, row: Row) -> None:
        """Append a row.

        Raises:
            UserError: If it cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"arm": self.arm, "seed": self.seed, **row}) + "\n")
        except OSError as error:
            raise UserError(str(self.path), f"cannot write the metrics: {error.strerror}") from error

    def say(self, line: str) -> None:
        """Nothing: the file holds figures only."""

    def finish(self) -> None:
        """Nothing to close."""


class TensorBoard:
    """TensorBoard scalars of one cell.

    Args:
        folder: Where its files go.

    Raises:
        UserError: If tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "train.tensorboard", "tensorboard is not installed: pip install 'potstill[tensorboard]'"
            ) from error
        self._open = SummaryWriter
        self._folder = folder
        self._writer: Any = None

    def start(self, step: int, total: int) -> None:
        """Open the file; what an earlier one says of later steps is not shown."""
        del total
        self._writer = self._open(str(self._folder), purge_step=step + 1)

    def advance(self, step: int) -> None:
        """Nothing: steps are logged in rows."""

    def log(self, row: Row) -> None:
        """Write every number of the row."""
        for name, value in row.items():
            if isinstance(value, Mapping):
                for part, figure in value.items():
                    title = part if name == "parts" else f"{name}/{part}"
                    self._writer.add_scalar(title, figure, row["step"])
            elif name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def say(self, line: str) -> None:
        """Nothing: figures only."""

    def finish(self) -> None:
        """Write out what is buffered."""
        if self._writer is not None:
            self._writer.close()


class Many:
    """Several observers as one.

    Args:
        observers: Whom to tell; none is allowed.
    """

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def start(self, step: int, total: int) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.start(step, total)

    def advance(self, step: int) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.advance(step)

    def log(self, row: Row) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.log(row)

    def say(self, line: str) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.say(line)

    def finish(self) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.finish()


def make_observer(
    path: Path, *, arm: str, seed: int, title: str, tensorboard: Path | None, main: bool
) -> Observer:
    """The observers of one cell; only the main rank has any.

    Args:
        path: The metrics file.
        arm: ``control`` or ``student``.
        seed: Seed of the cell.
        title: What the bar calls it.
        tensorboard: Folder for TensorBoard files, ``None`` for none.
        main: Whether this is the main rank.
    """
    if not main:
        return Many()
    observers: list[Observer] = [
        Bar(title) if sys.stderr.isatty() and sys.stdout.isatty() else Lines(title),
        MetricsFile(path, arm, seed),
    ]
    if tensorboard is not None:
        observers.append(TensorBoard(tensorboard / f"{arm}-{seed}"))
    return Many(*observers)
