"""From trained cells to an honest result: the test part is read here, once, after all training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill import distributed, measure, quality
from potstill.cells import Finished
from potstill.experiment import Arm, Experiment
from potstill.folder import RunFolder
from potstill.models.weights import save_weights
from potstill.networks import DEEPEST, ByExit, evaluate_networks, predict_cell
from potstill.schemes.settings import DeepSupervisionConfig
from potstill.verdict import Verdict, compare, mean_interval

__all__ = [
    "ArmOutcome",
    "Outcome",
    "Shared",
    "conclude",
    "measure_models",
    "predict_teacher",
]

Logits = NDArray[np.float32]
LATENCY_BATCHES = (1, 64)


@dataclass(frozen=True, kw_only=True)
class ArmOutcome:
    """One arm over its seeds on the test part.

    Attributes:
        cells: Its finished cells, by seed.
        answers: Of the selected weights, one a seed.
        last: Accuracy of the last epoch's weights per seed.
        best: Accuracy of the best epoch's weights per seed (best by validation).
    """

    cells: Sequence[Finished]
    answers: Sequence[ByExit]
    last: tuple[float, ...]
    best: tuple[float, ...]

    @property
    def selected(self) -> Logits:
        """Logits ``(seeds, N, C)`` of the whole networks."""
        return np.stack([answers[DEEPEST] for answers in self.answers])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything that was found out, for ``result.json`` and the report.

    ``shipped`` is what the network in ``student.safetensors`` answers on the test part.
    """

    result: dict[str, Any]
    shipped: ByExit
    verdict: Verdict | None
    labels: NDArray[np.int64]
    teacher: Logits | None
    arms: Mapping[Arm, ArmOutcome]
    measured: Mapping[str, measure.Measured]


@dataclass(frozen=True)
class Shared:
    """What does not depend on how a student was trained.

    Attributes:
        teacher: The teacher's logits on the test part, ``(N, C)``, where there is one.
        measured: Size and latency of ``teacher`` and ``student``, and of ``control`` where it is built
            otherwise than the student.
    """

    teacher: Logits | None
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
    labels = experiment.splits.test.labels.numpy()
    shared = shared or Shared(predict_teacher(experiment), measure_models(experiment))
    teacher, measured = shared.teacher, shared.measured
    arms = _arms(experiment, cells, labels)
    verdict = None
    if "control" in arms:
        verdict = compare(
            _correct(arms["student"].selected, labels), _correct(arms["control"].selected, labels)
        )
    student = arms["student"]
    best = _best_seed(experiment, student.cells)
    if distributed.is_main():
        _keep_student(experiment, student.cells[best], folder)
    return Outcome(
        result=_result(experiment, arms, teacher, labels, verdict, measured),
        shipped=student.answers[best],
        verdict=verdict,
        labels=labels,
        teacher=teacher,
        arms=arms,
        measured=measured,
    )


def predict_teacher(experiment: Experiment) -> Logits | None:
    """The teacher's logits on the test part, ``(N, C)``, where there is one."""
    if experiment.teacher is None:
        return None
    part = experiment.evaluation(experiment.splits.test)
    logits: Logits = experiment.task.predict(experiment.teacher, part, "teacher").numpy()
    return logits


def measure_models(experiment: Experiment) -> Mapping[str, measure.Measured]:
    """Size and latency of teacher and student, and of a control that is built otherwise."""
    networks = {} if experiment.teacher is None else {"teacher": experiment.teacher}
    networks["student"] = experiment.blank("student").to(experiment.device)
    if isinstance(experiment.recipe.scheme, DeepSupervisionConfig):
        networks["control"] = experiment.blank("control").to(experiment.device)
    shapes = experiment.input_shapes()
    shapes["control"] = shapes["student"]
    return measure.measure(networks, {name: shapes[name] for name in networks}, batches=LATENCY_BATCHES)


def _arms(
    experiment: Experiment, cells: Sequence[Finished], labels: NDArray[np.int64]
) -> dict[Arm, ArmOutcome]:
    arms: dict[Arm, ArmOutcome] = {}
    selected = experiment.recipe.train.select
    for arm in ("control", "student"):
        mine = [cell for cell in cells if cell.cell.arm == arm]
        if not mine:
            continue
        answers = [predict_cell(experiment, cell) for cell in mine]
        arms[arm] = ArmOutcome(
            cells=mine,
            answers=[one[selected] for one in answers],
            last=tuple(quality.accuracy(one["last"][DEEPEST], labels) for one in answers),
            best=tuple(quality.accuracy(one["best"][DEEPEST], labels) for one in answers),
        )
    return arms


def _correct(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    correct: NDArray[np.float64] = (logits.argmax(axis=-1) == labels).astype(np.float64)
    return correct


def _result(
    experiment: Experiment,
    arms: Mapping[Arm, ArmOutcome],
    teacher: Logits | None,
    labels: NDArray[np.int64],
    verdict: Verdict | None,
    measured: Mapping[str, measure.Measured],
) -> dict[str, Any]:
    """The contents of ``result.json``; metrics are fractions."""
    models: dict[str, Any] = {}
    if teacher is not None:
        models["teacher"] = {
            "accuracy": quality.accuracy(teacher, labels),
            "interval": list(mean_interval(_correct(teacher[None], labels))),
            "ece": quality.calibration(quality.softmax(teacher), labels).ece,
            **_sizes(measured["teacher"]),
        }
    for arm, outcome in arms.items():
        size = measured.get(arm, measured["student"])
        models[arm] = {**_arm_result(outcome, teacher, labels), **_sizes(size)}
    student = arms["student"]
    return {
        "task": experiment.recipe.task,
        "metric": experiment.task.metric,
        "higher_is_better": experiment.task.higher_is_better,
        "seeds": experiment.recipe.seeds,
        "test_samples": len(labels),
        "models": models,
        "gain": None if verdict is None else verdict.gain,
        "interval": None if verdict is None else list(verdict.interval),
        "verdict": None if verdict is None else verdict.verdict,
        "reason": "no control was trained (--no-control)" if verdict is None else verdict.reason,
        "selected": experiment.recipe.train.select,
        "seconds": sum(cell.seconds for outcome in arms.values() for cell in outcome.cells),
        "samples_per_second": float(np.mean([cell.samples_per_second for cell in student.cells])),
        **evaluate_networks(experiment, student.cells, student.answers, labels),
    }


def _arm_result(outcome: ArmOutcome, teacher: Logits | None, labels: NDArray[np.int64]) -> dict[str, Any]:
    per_seed = [quality.accuracy(logits, labels) for logits in outcome.selected]
    seeds = outcome.selected
    chosen = {name: [cell.weights[name] for cell in outcome.cells] for name in outcome.cells[0].weights}
    return {
        **({"weights": chosen} if chosen else {}),
        **({} if teacher is None else _beside_teacher(seeds, teacher)),
        "accuracy": float(np.mean(per_seed)),
        "per_seed": per_seed,
        "interval": list(mean_interval(_correct(seeds, labels))),
        "last": float(np.mean(outcome.last)),
        "best": float(np.mean(outcome.best)),
        "best_epochs": [cell.best_epoch for cell in outcome.cells],
        "ece": float(np.mean([quality.calibration(quality.softmax(one), labels).ece for one in seeds])),
        "seconds": float(np.sum([cell.seconds for cell in outcome.cells])),
        "samples_per_second": float(np.mean([cell.samples_per_second for cell in outcome.cells])),
    }


def _beside_teacher(seeds: Logits, teacher: Logits) -> dict[str, float]:
    return {
        "agreement": float(np.mean([quality.agreement(one, teacher) for one in seeds])),
        "kl_to_teacher": float(np.mean([quality.kl_to_teacher(one, teacher) for one in seeds])),
    }


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
        return row[experiment.task.metric]

    return max(range(len(cells)), key=lambda place: validation(cells[place]))


def _keep_student(experiment: Experiment, cell: Finished, folder: RunFolder) -> None:
    """Write the shipped weights."""
    which = experiment.recipe.train.select
    model = cell.load(experiment.blank("student"), which)
    preprocessing = experiment.task.preprocessing["student"]
    metadata = {
        "seed": str(cell.cell.seed),
        "selected": which,
        "classes": "\n".join(experiment.task.class_names),
        "preprocessing": preprocessing.describe(),
    }
    save_weights(model, folder.student, metadata)
