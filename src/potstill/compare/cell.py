"""One cell of a comparison: trained once, evaluated once, and finished when its ``cell.json`` is there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.answers import Answers
from potstill.cells import Finished, train_cell
from potstill.compare.place import Job, Place
from potstill.config import Recipe
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.files import write_atomic, write_json
from potstill.results.networks import DEEPEST, predict_cell, test_logits
from potstill.train.observe import Many, make_observer

__all__ = ["experiment_of", "read_cell", "reason", "remembering", "run_cell"]

MOST_ANSWERS = 4 << 30
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def experiment_of(base: Experiment, recipe: Recipe) -> Experiment:
    """The same data, teacher and student with what ``recipe`` matches; nothing is loaded again.

    Methods of a seed see the same batches, so their teacher answers once for all of them in a process.
    """
    return replace(base, recipe=replace(base.recipe, distill=recipe.distill, seeds=recipe.seeds))


def remembering(experiment: Experiment) -> Experiment:
    """The same experiment, whose teacher's answers are kept for all methods that are trained with it."""
    return replace(experiment, answers=Answers(MOST_ANSWERS))


def run_cell(base: Experiment, place: Place, job: Job, title: str) -> bool:
    """Train a cell, or go on with it, and evaluate it on the test part.

    Args:
        base: The loaded experiment that all cells share.
        place: The folder of the comparison.
        job: Which cell.
        title: What the progress bar calls it.

    Returns:
        Whether it is finished; ``False`` if the user interrupted it (its checkpoint is saved).

    Raises:
        UserError: If the loss is not finite, a layer is unknown, or the disk is full.
    """
    experiment = experiment_of(base, place.recipe(job.method))
    folder = place.cell(job)
    folder.mkdir(parents=True, exist_ok=True)
    observer = make_observer(
        folder / "metrics.jsonl", arm=job.cell.arm, seed=job.seed, title=title, tensorboard=None, main=True
    )
    memory = _Memory.watch(experiment.device)
    trained = train_cell(experiment, job.cell, place.run(job.method), observer, resume=True)
    if trained is None:
        return False
    peak = memory.peak()
    scores: dict[str, float] = {}
    for which, answers in predict_cell(experiment, trained).items():
        with write_atomic(test_logits(trained, which)) as aside:
            np.save(aside, answers[DEEPEST])
        scores[which] = experiment.task.value(answers[DEEPEST], experiment.splits.test)
    row: dict[str, Any] = {
        **scores,
        "metric": experiment.task.metric,
        "steps": trained.steps,
        "seconds": trained.seconds,
        "seconds_per_step": trained.seconds / max(trained.steps, 1),
        "peak_memory_bytes": peak,
        "threads": torch.get_num_threads(),
    }
    write_json(folder / "cell.json", row)
    return True


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def read_cell(base: Experiment, place: Place, job: Job) -> Finished:
    """A finished cell from its folder."""
    found = train_cell(base, job.cell, place.run(job.method), Many(), resume=True)
    assert found is not None, "a finished cell cannot be interrupted"
    return found


@dataclass(frozen=True)
class _Memory:
    """The most memory a stretch of work took: the GPU's where it runs there, else the process's."""

    device: torch.device
    resettable: bool

    @classmethod
    def watch(cls, device: torch.device) -> _Memory:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return cls(device, True)
        try:
            _RESET.write_text("5")  # Linux: the peak starts anew, so that cells of one process do not add up
        except OSError:
            return cls(device, False)
        return cls(device, True)

    def peak(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if self.resettable:
            for line in _STATUS.read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak * 1024)
