"""What the report tells of a run beyond its numbers: the set-up in words, examples, layers, curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.cells import Finished
from potstill.experiment import Experiment
from potstill.objective import Objective
from potstill.outcome import Outcome
from potstill.report.content import ClassDifference, History, PairRow, ReportContent, TermRow
from potstill.report.evidence import arm_detail, class_differences, telling_samples

__all__ = ["tell"]


def tell(
    experiment: Experiment,
    outcome: Outcome,
    facts: Mapping[str, Any],
    *,
    teacher_validation: float,
    warnings: Sequence[str],
) -> ReportContent:
    """Everything the page needs that ``result.json`` does not hold.

    Args:
        experiment: The loaded recipe.
        outcome: What was found out.
        facts: The contents of ``environment.json``.
        teacher_validation: The teacher's accuracy on validation, before training.
        warnings: What a reader must not miss.
    """
    recipe = experiment.recipe
    objective = experiment.scheme("student", recipe.seed).objective
    temperature = _temperature(objective)
    answers = {"teacher": outcome.teacher[None]} | {arm: one.selected for arm, one in outcome.arms.items()}
    return ReportContent(
        title=f"{_short(recipe.student.model)} taught by {_short(recipe.teacher.model)}",
        models={"teacher": recipe.teacher.model, "student": recipe.student.model},
        setup=tuple(_setup(experiment, facts, teacher_validation, control="control" in outcome.arms)),
        notes=(*warnings, *recipe.notes, *experiment.notes),
        class_names=experiment.task.class_names,
        temperature=temperature,
        details={arm: arm_detail(logits, outcome.labels) for arm, logits in answers.items()},
        differences=_differences(experiment, outcome),
        histories=tuple(
            History(arm=cell.cell.arm, seed=cell.cell.seed, rows=tuple(cell.history))
            for arm in outcome.arms.values()
            for cell in arm.cells
        ),
        samples=telling_samples(
            {arm: logits[0] for arm, logits in answers.items()},
            outcome.labels,
            experiment.task.class_names,
            temperature=temperature,
            image=lambda index: experiment.splits.test.images([index])[0].numpy(),
        ),
        terms=tuple(_terms(objective, outcome.arms["student"].cells)),
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


def _setup(
    experiment: Experiment, facts: Mapping[str, Any], teacher_validation: float, *, control: bool
) -> Iterator[str]:
    recipe, splits = experiment.recipe, experiment.splits
    yield (
        f"The teacher came trained and was never changed; it is right on {teacher_validation:.2%} of the "
        f"{len(splits.validation):,} validation images. What it saw in its own training is not known to this "
        "report unless a note says so."
    )
    images = f"{len(splits.train):,} labelled images"
    if control:
        yield (
            f"Control and student are the same network with the same initial weights, trained on the same "
            f"{images} in the same order, under the same augmentation, for the same number of steps. The "
            f"control learns from the labels alone, the student also from the teacher. Each of the "
            f"{recipe.seeds} seed(s) draws new initial weights and a new order for both."
        )
    else:
        yield f"The student is trained on {images} and the teacher's answers to them. No control was trained."
    select = recipe.train.select
    chosen = "The last epoch's weights count" if select == "last" else "The best epoch by validation counts"
    yield (
        f"{chosen}. Validation images serve for such choices only; the {len(splits.test):,} test images were "
        "read only after training, and every accuracy of the table is on them."
    )
    yield (
        f"Latency is the median of repeated forward passes in float32 on {facts['processor']} with "
        f"{facts['threads']} thread(s), teacher and student timed in turns. Trained in {facts['precision']}."
    )


def _terms(objective: Objective, cells: Sequence[Finished]) -> Iterator[TermRow]:
    """The terms; a weight that was measured is the mean over seeds, and each seed's is told."""
    yield TermRow(name="labels", loss="cross-entropy", weight=objective.labels)
    for name, term in objective.terms.items():
        options = ", ".join(f"{key} {value}" for key, value in term.options.items())
        chosen = [cell.weights[name] for cell in cells if name in cell.weights]
        if chosen:
            seeds = ", ".join(f"{weight:.4g}" for weight in chosen)
            options += f"; weight auto, share {term.share:g} of the labels' gradient, by seed: {seeds}"
        weight = sum(chosen) / len(chosen) if chosen else term.weight
        yield TermRow(name=name, loss=term.function.__name__, weight=weight, detail=options)


def _temperature(objective: Objective) -> float:
    """The first term's temperature, or 1."""
    found = (term.options.get("temperature") for term in objective.terms.values())
    return next((float(value) for value in found if value is not None), 1.0)


def _differences(experiment: Experiment, outcome: Outcome) -> tuple[ClassDifference, ...]:
    if "control" not in outcome.arms:
        return ()
    student, control = (outcome.arms[arm].selected for arm in ("student", "control"))
    return class_differences(student, control, outcome.labels, experiment.task.class_names)
