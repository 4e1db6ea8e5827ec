"""What the report tells of a run beyond its numbers: the set-up in words, examples, layers, curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill import quality
from potstill.experiment import Experiment
from potstill.objective import parse_terms
from potstill.outcome import Logits, Outcome
from potstill.report.content import (
    Answer,
    ArmDetail,
    Bin,
    ClassDifference,
    Guess,
    History,
    PairRow,
    ReportContent,
    Sample,
    TermRow,
    picture,
)
from potstill.verdict import compare

__all__ = ["tell"]

SHOWN_SAMPLES = 8
SHOWN_CLASSES = 4


def tell(
    experiment: Experiment, outcome: Outcome, facts: Mapping[str, Any], *, teacher_validation: float
) -> ReportContent:
    """Everything the page needs that ``result.json`` does not hold.

    Args:
        experiment: The loaded recipe.
        outcome: What was found out.
        facts: The contents of ``environment.json``.
        teacher_validation: The teacher's accuracy on validation, before training.
    """
    recipe = experiment.recipe
    terms = tuple(_terms(experiment))
    temperature = _temperature(experiment)
    objective = experiment.scheme("student", recipe.seed).objective
    return ReportContent(
        title=f"{_short(recipe.student.model)} taught by {_short(recipe.teacher.model)}",
        models={"teacher": recipe.teacher.model, "student": recipe.student.model},
        setup=tuple(_setup(experiment, facts, teacher_validation)),
        notes=(*recipe.notes, *experiment.notes),
        class_names=experiment.task.class_names,
        temperature=temperature,
        details=_details(outcome),
        differences=tuple(_differences(experiment, outcome)),
        histories=tuple(
            History(arm=cell.cell.arm, seed=cell.cell.seed, rows=tuple(cell.history))
            for arm in outcome.arms.values()
            for cell in arm.cells
        ),
        samples=tuple(_samples(experiment, outcome, temperature)),
        terms=terms,
        pairs=tuple(
            PairRow(
                term=pair.term,
                student=pair.student,
                teacher=pair.teacher,
                student_shape=tuple(pair.student_shape[1:]),
                teacher_shape=tuple(pair.teacher_shape[1:]),
                adapter=pair.adapter,
                reason=pair.reason,
            )
            for pair in objective.plan
        ),
    )


def _short(spec: str) -> str:
    """``potstill.models.cifar:resnet56`` as ``resnet56``."""
    name = spec.rpartition(":")[2] or spec
    return Path(name).name.removeprefix("<in memory> ")


def _setup(experiment: Experiment, facts: Mapping[str, Any], teacher_validation: float) -> Iterator[str]:
    recipe, splits = experiment.recipe, experiment.splits
    arms = "Control and student are the same network with the same initial weights, trained on the same"
    yield (
        f"The teacher came trained and was never changed; it is right on {teacher_validation:.2%} of the "
        f"{len(splits.validation):,} validation images. What it saw in its own training is not known to this "
        "report unless a note says so."
    )
    yield (
        f"{arms} {len(splits.train):,} labelled images in the same order and under the same augmentation, "
        f"for the same number of steps. The control learns from the labels alone; the student also from the "
        f"teacher. Each of the {recipe.seeds} seed(s) draws new initial weights and a new order for both."
    )
    select = recipe.train.select
    chosen = "The last epoch's weights count" if select == "last" else "The best epoch by validation counts"
    yield (
        f"{chosen}. Validation images serve for such choices only; the {len(splits.test):,} test images were "
        "read once, after all training, and every accuracy of the table is on them."
    )
    yield (
        f"Latency is the median of repeated forward passes in float32 on {facts['processor']} with "
        f"{facts['threads']} thread(s), teacher and student timed in turns. Trained in {facts['precision']}."
    )


def _terms(experiment: Experiment) -> Iterator[TermRow]:
    scheme = experiment.scheme("student", experiment.recipe.seed)
    yield TermRow(name="labels", loss="cross-entropy", weight=scheme.objective.labels)
    _, configs = parse_terms(experiment.recipe.distill)
    for name, term in scheme.objective.terms.items():
        options = ", ".join(f"{key} {value}" for key, value in configs[name].options.items())
        yield TermRow(name=name, loss=configs[name].loss, weight=term.weight, detail=options)


def _temperature(experiment: Experiment) -> float:
    """The first term's temperature, or 1."""
    _, configs = parse_terms(experiment.recipe.distill)
    scheme = experiment.scheme("student", experiment.recipe.seed)
    for name in configs:
        value = scheme.objective.terms[name].options.get("temperature")
        if value is not None:
            return float(value)
    return 1.0


def _details(outcome: Outcome) -> dict[str, ArmDetail]:
    arms: dict[str, Logits] = {"teacher": outcome.teacher[None]}
    arms.update({arm: one.selected for arm, one in outcome.arms.items()})
    return {arm: _detail(logits, outcome.labels) for arm, logits in arms.items()}


def _detail(logits: Logits, labels: NDArray[np.int64]) -> ArmDetail:
    """Per-class accuracy averaged over seeds, and one reliability diagram over all seeds' answers."""
    per_class = np.stack([quality.class_accuracy(one, labels) for one in logits]).mean(axis=0)
    everything = quality.softmax(logits).reshape(-1, logits.shape[-1])
    bins = quality.calibration(everything, np.tile(labels, len(logits)))
    return ArmDetail(
        class_accuracy=tuple(None if np.isnan(value) else float(value) for value in per_class),
        bins=tuple(
            Bin(confidence=confidence, accuracy=accuracy, count=count)
            for confidence, accuracy, count in zip(bins.confidence, bins.accuracy, bins.count, strict=True)
            if count
        ),
    )


def _differences(experiment: Experiment, outcome: Outcome) -> Iterator[ClassDifference]:
    if "control" not in outcome.arms:
        return
    labels = outcome.labels
    right = {arm: (one.selected.argmax(axis=-1) == labels).astype(float) for arm, one in outcome.arms.items()}
    for number, name in enumerate(experiment.task.class_names):
        mine = labels == number
        if mine.sum() < 2:
            continue
        control, student = right["control"][:, mine], right["student"][:, mine]
        yield ClassDifference(
            name=name,
            control=float(control.mean()),
            student=float(student.mean()),
            interval=compare(student, control).interval,
            samples=int(mine.sum()),
        )


def _samples(experiment: Experiment, outcome: Outcome, temperature: float) -> Iterator[Sample]:
    """Test images of the first seed on which the teacher's doubt is instructive."""
    names = experiment.task.class_names
    logits = {"teacher": outcome.teacher} | {arm: one.selected[0] for arm, one in outcome.arms.items()}
    for index, why in _instructive(logits, outcome.labels):
        images, _, _ = experiment.splits.test.__getitems__([index])
        yield Sample(
            image=picture(images[0].numpy()),
            index=index,
            label=names[outcome.labels[index]],
            why=why,
            answers=tuple(
                Answer(
                    arm=arm,
                    plain=_guesses(values[index], names, 1.0),
                    soft=_guesses(values[index], names, temperature) if temperature != 1.0 else (),
                )
                for arm, values in logits.items()
            ),
        )


def _instructive(logits: Mapping[str, Logits], labels: NDArray[np.int64]) -> list[tuple[int, str]]:
    """Images that the student gained, lost, and that all find hard: the teacher's most doubtful of each."""
    right = {arm: values.argmax(axis=-1) == labels for arm, values in logits.items()}
    log_probabilities = quality.log_softmax(logits["teacher"])
    doubt = -(np.exp(log_probabilities) * log_probabilities).sum(axis=-1)
    groups: list[tuple[NDArray[np.bool_], str, int]] = []
    if "control" in right:
        groups.append(
            (right["student"] & ~right["control"] & right["teacher"], "the student gained this one", 3)
        )
        groups.append((~right["student"] & right["control"], "the student lost this one", 2))
    groups.append((~right["student"] & right["teacher"], "only the teacher knows", 1))
    groups.append((np.ones_like(right["teacher"]), "the teacher doubts most", SHOWN_SAMPLES))
    chosen: dict[int, str] = {}
    for mask, why, count in groups:
        ranked = [int(index) for index in np.argsort(-doubt, kind="stable") if mask[index]]
        for index in [index for index in ranked if index not in chosen][:count]:
            if len(chosen) < SHOWN_SAMPLES:
                chosen[index] = why
    return list(chosen.items())


def _guesses(logits: NDArray[np.float32], names: tuple[str, ...], temperature: float) -> tuple[Guess, ...]:
    probabilities = quality.softmax(logits, temperature)
    order = np.argsort(-probabilities, kind="stable")[:SHOWN_CLASSES]
    return tuple(Guess(name=names[index], probability=float(probabilities[index])) for index in order)
