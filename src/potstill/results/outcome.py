"""From trained cells to an honest result: the test part is read here, once, after all training."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from potstill import distributed, measure
from potstill.cells import Finished
from potstill.experiment import Arm, Experiment
from potstill.files import write_atomic
from potstill.folder import RunFolder
from potstill.metrics.verdict import Verdict, compare
from potstill.results.networks import DEEPEST, ByExit, evaluate_networks, predict_cell
from potstill.schemes.settings import AdversarialConfig, DeepSupervisionConfig, LabelsConfig
from potstill.tasks import Answers, ImageToImage, Task

__all__ = [
    "ArmOutcome",
    "Outcome",
    "Shared",
    "conclude",
    "measure_models",
    "predict_teacher",
]

LATENCY_BATCHES = (1, 64)


@dataclass(frozen=True, kw_only=True)
class ArmOutcome:
    """One arm over its seeds on the test part.

    Attributes:
        cells: Its finished cells, by seed.
        answers: Of the selected weights, one a seed.
        last: The metric of the last epoch's weights per seed.
        best: The metric of the best epoch's weights per seed (best by validation).
    """

    cells: Sequence[Finished]
    answers: Sequence[ByExit]
    last: tuple[float, ...]
    best: tuple[float, ...]

    @property
    def selected(self) -> Answers:
        """Answers ``(seeds, N, ...)`` of the whole networks: logits of a classifier."""
        return np.stack([answers[DEEPEST] for answers in self.answers])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything that was found out, for ``result.json`` and the report.

    ``shipped`` is what the network in ``student.safetensors`` answers on the test part.
    """

    result: dict[str, Any]
    shipped: ByExit
    verdict: Verdict | None
    teacher: Answers | None
    arms: Mapping[Arm, ArmOutcome]
    measured: Mapping[str, measure.Measured]


@dataclass(frozen=True)
class Shared:
    """What does not depend on how a student was trained.

    Attributes:
        teacher: The teacher's answers to the test part, ``(N, ...)``, where there is one.
        measured: Size and latency of ``teacher`` and ``student``, and of ``control`` where it is built
            otherwise than the student.
    """

    teacher: Answers | None
    measured: Mapping[str, measure.Measured]


def conclude(
    experiment: Experiment, cells: Sequence[Finished], folder: RunFolder, shared: Shared | None = None
) -> Outcome:
    """Evaluate all cells on the test part, compare the arms, measure the models, write ``result.json``.

    Args:
        experiment: The loaded recipe.
        cells: All finished cells; the control's may be absent.
        folder: Where ``student.safetensors`` and ``result.json`` go.
        shared: What is known of teacher and student already.
    """
    shared = shared or Shared(predict_teacher(experiment), measure_models(experiment))
    teacher, measured = shared.teacher, shared.measured
    arms = _arms(experiment, cells)
    verdict = None
    if "control" in arms:
        task, test = experiment.task, experiment.splits.test
        verdict = compare(*(task.per_sample(arms[arm].selected, test) for arm in ("student", "control")))
    student = arms["student"]
    best = _best_seed(experiment, student.cells)
    if distributed.is_main():
        _keep_student(experiment, student.cells[best], folder)
    return Outcome(
        result=_result(experiment, arms, teacher, verdict, measured),
        shipped=student.answers[best],
        verdict=verdict,
        teacher=teacher,
        arms=arms,
        measured=measured,
    )


def predict_teacher(experiment: Experiment) -> Answers | None:
    """The teacher's answers to the test part, ``(N, ...)``, where there is one."""
    if experiment.known is not None:
        return experiment.known.test
    if experiment.teacher is None:
        return None
    part = experiment.evaluation(experiment.splits.test)
    answers: Answers = experiment.task.predict(experiment.teacher, part, "teacher").numpy()
    return answers


def measure_models(experiment: Experiment) -> Mapping[str, measure.Measured]:
    """Size and latency of teacher and student, and of a control that is built otherwise."""
    networks: dict[str, nn.Module] = {}
    known = {} if experiment.known is None else {"teacher": experiment.known.measured}
    if not known and experiment.teacher is not None:  # laid out as the student is, or one would look slow
        networks["teacher"] = copy.deepcopy(experiment.teacher).to(memory_format=torch.contiguous_format)
    networks["student"] = experiment.blank("student").to(experiment.device)
    if isinstance(experiment.recipe.scheme, DeepSupervisionConfig):
        networks["control"] = experiment.blank("control").to(experiment.device)
    inputs = experiment.inputs()
    inputs["control"] = inputs["student"]
    found = measure.measure(networks, {name: inputs[name] for name in networks}, batches=LATENCY_BATCHES)
    return {**known, **found}


def _arms(experiment: Experiment, cells: Sequence[Finished]) -> dict[Arm, ArmOutcome]:
    arms: dict[Arm, ArmOutcome] = {}
    task, test = experiment.task, experiment.splits.test
    selected = experiment.recipe.train.select
    for arm in ("control", "student"):
        mine = [cell for cell in cells if cell.cell.arm == arm]
        if not mine:
            continue
        answers = [predict_cell(experiment, cell) for cell in mine]
        arms[arm] = ArmOutcome(
            cells=mine,
            answers=[one[selected] for one in answers],
            last=tuple(task.value(one["last"][DEEPEST], test) for one in answers),
            best=tuple(task.value(one["best"][DEEPEST], test) for one in answers),
        )
    return arms


def _result(
    experiment: Experiment,
    arms: Mapping[Arm, ArmOutcome],
    teacher: Answers | None,
    verdict: Verdict | None,
    measured: Mapping[str, measure.Measured],
) -> dict[str, Any]:
    """The contents of ``result.json``; metrics are fractions."""
    task, test = experiment.task, experiment.splits.test
    models: dict[str, Any] = {}
    if teacher is not None:
        _, by_itself = task.figures(teacher[None], None, test)
        models["teacher"] = {
            task.metric: task.value(teacher, test),
            "interval": list(task.interval(teacher[None], test)),
            **by_itself,
            **_sizes(measured["teacher"]),
        }
    for arm, outcome in arms.items():
        size = measured.get(arm, measured["student"])
        models[arm] = {**_arm_result(outcome, teacher, task, test), **_sizes(size)}
    student = arms["student"]
    return {
        "task": experiment.recipe.task,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "seeds": experiment.recipe.seeds,
        "test_samples": len(test),
        "models": models,
        "gain": None if verdict is None else verdict.gain,
        "interval": None if verdict is None else list(verdict.interval),
        "verdict": None if verdict is None else verdict.verdict,
        **_other_gains(task, arms),
        "reason": _without_control(experiment) if verdict is None else verdict.reason,
        "selected": experiment.recipe.train.select,
        "seconds": sum(cell.seconds for outcome in arms.values() for cell in outcome.cells),
        "samples_per_second": float(np.mean([cell.samples_per_second for cell in student.cells])),
        **evaluate_networks(
            experiment,
            student.cells,
            student.answers,
            arms["control"].selected if "control" in arms else None,
        ),
    }


def _arm_result(outcome: ArmOutcome, teacher: Answers | None, task: Task, test: Any) -> dict[str, Any]:
    per_seed = [task.value(answers, test) for answers in outcome.selected]
    beside_teacher, by_itself = task.figures(outcome.selected, teacher, test)
    chosen = {name: [cell.weights[name] for cell in outcome.cells] for name in outcome.cells[0].weights}
    return {
        **({"weights": chosen} if chosen else {}),
        **beside_teacher,
        task.metric: float(np.mean(per_seed)),
        "per_seed": per_seed,
        "interval": list(task.interval(outcome.selected, test)),
        "last": float(np.mean(outcome.last)),
        "best": float(np.mean(outcome.best)),
        "best_epochs": [cell.best_epoch for cell in outcome.cells],
        **by_itself,
        "seconds": float(np.sum([cell.seconds for cell in outcome.cells])),
        "samples_per_second": float(np.mean([cell.samples_per_second for cell in outcome.cells])),
    }


def _other_gains(task: Task, arms: Mapping[Arm, ArmOutcome]) -> dict[str, Any]:
    """Of generators: gain, interval and verdict of what else images are measured by."""
    if not isinstance(task, ImageToImage) or "control" not in arms:
        return {}
    return {"gains": task.gains(arms["student"].selected, arms["control"].selected)}


def _without_control(experiment: Experiment) -> str:
    """Why there is no verdict."""
    if isinstance(experiment.recipe.scheme, LabelsConfig):
        return "learnt from labels alone: there is nothing to compare it with"
    if isinstance(experiment.recipe.scheme, AdversarialConfig) and experiment.recipe.teacher is None:
        return "learnt without a teacher: there is nothing to compare it with"
    if experiment.task.supervised is None and not experiment.has_control:
        return (
            "no control was trained: without the teacher there is nothing to learn from (scheme: adversarial "
            "has a control, also with weight: 0)"
        )
    if experiment.has_control:
        return "no control was trained (--no-control)"
    return "no control was trained: the network stays as it came, only its exits learn"


def _sizes(measured: measure.Measured) -> dict[str, Any]:
    return {
        "parameters": measured.parameters,
        "macs": measured.macs,
        "bytes": measured.bytes,
        "latency_ms": {str(batch): asdict(latency) for batch, latency in measured.latency_ms.items()},
    }


def _best_seed(experiment: Experiment, cells: Sequence[Finished]) -> int:
    """The place of the cell whose selected epoch did best on validation, never on test."""

    def validation(cell: Finished) -> float:
        row = cell.history[-1 if experiment.recipe.train.select == "last" else cell.best_epoch - 1]
        value = row[experiment.task.metric]
        return value if experiment.task.higher_is_better else -value

    return max(range(len(cells)), key=lambda place: validation(cells[place]))


def _keep_student(experiment: Experiment, cell: Finished, folder: RunFolder) -> None:
    """Write the shipped weights, and those of what the student learnt with."""
    which = experiment.recipe.train.select
    model = cell.load(experiment.blank("student"), which)
    experiment.task.keep(model, folder.student, {"seed": str(cell.cell.seed), "selected": which})
    for name in cell.aids:
        with write_atomic(folder.path / f"{name}.safetensors") as aside:
            shutil.copyfile(cell.folder / f"{name}.safetensors", aside)
