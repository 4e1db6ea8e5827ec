"""What removal lost, how much of it training brought back, and students of the same size beside it.

The share regained is ``(student - start) / (teacher - start)``, where ``start`` is the original with all
parts gone and no training: 1 where the student is as good as its teacher. Scores are those of the verdict: a
sample's, higher is better (nats a token of a document, with the sign turned, for a language model).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from potstill.metrics.verdict import compare, mean_interval
from potstill.results.networks import DEEPEST, predict_cell
from potstill.results.outcome import Outcome
from potstill.rounds.loop import Pruned
from potstill.rounds.rivals import Rival
from potstill.tasks import Answers

__all__ = ["recovered", "regained"]

Scores = NDArray[np.float64]


def regained(arm: Scores, start: Scores, teacher: Scores) -> tuple[float, tuple[float, float]] | None:
    """The share of what was lost that an arm has, and its 95 % interval.

    To first order the share deviates as ``(arm - start) - share (teacher - start)`` over the mean of what was
    lost, so its interval is a mean's, over seeds and test samples.

    Args:
        arm: Scores ``(S, N)``, higher is better.
        start: The same of the network before training, ``(1, N)``.
        teacher: Of the teacher, ``(1, N)``.

    Returns:
        ``None`` where nothing was lost.

    Example:
        >>> start, teacher = np.zeros((1, 4)), np.array([[1.0, 2.0, 3.0, 2.0]])
        >>> share, interval = regained(teacher * 0.75, start, teacher)
        >>> share, interval
        (0.75, (0.75, 0.75))
    """
    lost = teacher - start
    if lost.mean() <= 0:
        return None
    share = float((arm - start).mean() / lost.mean())
    low, high = mean_interval(((arm - start) - share * lost) / lost.mean())
    return share, (share + low, share + high)


def recovered(pruned: Pruned, outcome: Outcome) -> dict[str, Any]:
    """For ``result.json``: the network before training, what each arm regained, and the rivals."""
    experiment = pruned.experiment
    task, test = experiment.task, experiment.splits.test
    start = _answers(pruned, pruned.start)
    found: dict[str, Any] = {"start": {task.metric: task.value(start[0], test)}}
    before = task.per_sample(start, test)
    if outcome.teacher is not None:
        teacher = task.per_sample(outcome.teacher[None], test)
        shares = {
            arm: regained(task.per_sample(one.selected, test), before, teacher)
            for arm, one in outcome.arms.items()
        }
        found["regained"] = {
            arm: {"share": share[0], "interval": list(share[1])}
            for arm, share in shares.items()
            if share is not None
        }
    student = task.per_sample(outcome.arms["student"].selected, test)
    found["rivals"] = {name: _beside(rival, student) for name, rival in pruned.rivals.items()}
    return found


def _answers(pruned: Pruned, model: nn.Module) -> Answers:
    experiment = pruned.experiment
    part = experiment.evaluation(experiment.splits.test)
    answers: Answers = experiment.task.predict(model.to(experiment.device), part, "student").numpy()[None]
    return answers


def _beside(rival: Rival, student: Scores) -> dict[str, Any]:
    """A rival's metric, and the student's gain over it."""
    experiment = rival.experiment
    task, test = experiment.task, experiment.splits.test
    selected = experiment.recipe.train.select
    answers = np.stack([predict_cell(experiment, cell)[selected][DEEPEST] for cell in rival.cells])
    verdict = compare(student, task.per_sample(answers, test))
    per_seed = [task.value(one, test) for one in answers]
    return {
        task.metric: float(np.mean(per_seed)),
        "per_seed": per_seed,
        "gain": verdict.gain,
        "interval": list(verdict.interval),
        "verdict": verdict.verdict,
    }
