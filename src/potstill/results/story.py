"""What the report tells of a run beyond its numbers: the set-up in words, examples, layers, curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.cells import Finished
from potstill.config import ImageRecipe, Recipe
from potstill.data.dataset import LabelledSet
from potstill.experiment import Experiment
from potstill.matching.objective import Objective
from potstill.metrics.quality import shown
from potstill.report.content import History, PairRow, ReportContent, TermRow
from potstill.results.outcome import Outcome
from potstill.schemes.settings import (
    AdversarialConfig,
    BornAgainConfig,
    DeepSupervisionConfig,
    LabelsConfig,
    MutualConfig,
    SchemeConfig,
)
from potstill.tasks import ImageFromNoise, ImageToImage

__all__ = ["tell"]


def tell(
    experiment: Experiment,
    outcome: Outcome,
    facts: Mapping[str, Any],
    *,
    teacher_validation: float | None,
    warnings: Sequence[str],
) -> ReportContent:
    """Everything the page needs that ``result.json`` does not hold.

    Args:
        experiment: The loaded recipe.
        outcome: What was found out.
        facts: The contents of ``environment.json``.
        teacher_validation: The teacher's metric on validation, before training, where there is one.
        warnings: What a reader must not miss.
    """
    recipe = experiment.recipe
    objective = experiment.scheme("student", recipe.seed).objective
    temperature = _temperature(objective)
    answers = {} if outcome.teacher is None else {"teacher": outcome.teacher[None]}
    answers |= {arm: one.selected for arm, one in outcome.arms.items()}
    models = {} if recipe.teacher is None else {"teacher": recipe.teacher.model}
    return ReportContent(
        title=_title(recipe),
        models={**models, "student": recipe.student.model},
        setup=tuple(_setup(experiment, facts, teacher_validation, control="control" in outcome.arms)),
        notes=(*warnings, *recipe.notes, *experiment.notes),
        temperature=temperature,
        **experiment.task.evidence(answers, experiment.splits.test, temperature),
        histories=tuple(
            History(arm=cell.cell.arm, seed=cell.cell.seed, rows=_last_length(experiment, cell))
            for arm in outcome.arms.values()
            for cell in arm.cells
        ),
        terms=tuple(_terms(experiment, objective, outcome.arms["student"].cells)),
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


def _title(recipe: Recipe) -> str:
    student = _short(recipe.student.model)
    if isinstance(recipe, ImageRecipe):
        student = student.replace("layers of", "channels of")
    if recipe.prune is not None:
        return f"{student}, pruned and taught by what it was"
    if recipe.scheme.kind == "offline" and recipe.teacher is not None:
        others = f" and {len(recipe.co_teachers)} more" if recipe.co_teachers else ""
        return f"{student} taught by {_short(recipe.teacher.model)}{others}"
    return f"{student}, {recipe.scheme.kind.replace('_', ' ')}"


def _last_length(experiment: Experiment, cell: Finished) -> tuple[dict[str, float], ...]:
    """The rows of the last generation, its epochs counted anew; all rows where there are no generations."""
    if cell.cell.arm == "control" or not isinstance(experiment.recipe.scheme, BornAgainConfig):
        return tuple(cell.history)
    begin = cell.steps - cell.steps // len(experiment.recipe.scheme.networks_by_name())
    rows = [row for row in cell.history if row["step"] > begin]
    return tuple({**row, "epoch": row["epoch"] - rows[0]["epoch"] + 1} for row in rows)


def _short(spec: str) -> str:
    """``potstill.models.cifar:resnet56`` as ``resnet56``."""
    if spec == "teacher":
        return "layers of the teacher"
    name = spec.rpartition(":")[2] or spec
    return Path(name).name.removeprefix("<in memory> ")


def _setup(
    experiment: Experiment, facts: Mapping[str, Any], teacher_validation: float | None, *, control: bool
) -> Iterator[str]:
    recipe, splits, samples = experiment.recipe, experiment.splits, experiment.task.samples
    if teacher_validation is not None:
        yield (
            f"The teacher came trained and was never changed; {_reached(experiment, teacher_validation)} "
            f"the {len(splits.validation):,} validation {samples}. What it saw in its own training is not "
            "known to this report unless a note says so."
        )
    if recipe.co_teachers:
        yield (
            f"{len(recipe.co_teachers) + 1} networks teach as one, by the mean of their probabilities; what "
            "is said of the teacher is said of all of them together."
        )
    yield from _scheme_in_words(recipe.scheme)
    given = f"{len(splits.train):,} {_kind(experiment)}"
    if recipe.prune is not None:
        yield _pruned_in_words(recipe.prune.rounds, given, control=control)
    elif control:
        yield (
            f"Control and student are the same network with the same initial weights, trained on the same "
            f"{given} in the same order, under the same augmentation, for the same number of steps. The "
            f"control learns from {_without_lesson(experiment)}, the student also {_lesson(recipe)}. Each of "
            f"the {recipe.seeds} seed(s) draws new initial weights and a new order for both."
        )
    else:
        untaught = isinstance(recipe.scheme, AdversarialConfig) and recipe.teacher is None
        alone = isinstance(recipe.scheme, LabelsConfig) or untaught
        more = " alone" if alone else f", and {_lesson(recipe)}. No control was trained"
        yield f"The student is trained on {given}{more}."
    select = recipe.train.select
    timed = "teacher and student" if recipe.teacher is not None else "the networks"
    chosen = "The last epoch's weights count" if select == "last" else "The best epoch by validation counts"
    yield (
        f"{chosen}. Validation {samples} serve for such choices only; the {len(splits.test):,} test "
        f"{samples} were read only after training, and every {experiment.task.metric} of the table is on "
        "them."
    )
    yield (
        f"Latency is the median of repeated forward passes in float32 on {facts['processor']} with "
        f"{facts['threads']} thread(s), {timed} timed in turns. Trained in {facts['precision']}."
    )


def _reached(experiment: Experiment, value: float) -> str:
    if experiment.task.metric == "accuracy":
        return f"it is right on {value:.2%} of"
    return f"its {experiment.task.metric} is {shown(experiment.task.metric, value)} on"


def _kind(experiment: Experiment) -> str:
    labelled = isinstance(experiment.splits.train, LabelledSet)
    return f"labelled {experiment.task.samples}" if labelled else experiment.task.samples


def _pruned_in_words(steps: int, given: str, *, control: bool) -> str:
    text = (
        f"The student was pruned in {steps} round(s), each followed by training on {given}; the curves show "
        "the last."
    )
    if not control:
        return f"{text} No control was trained."
    return (
        f"{text} The control lost the same parts, was trained as long on the same batches, and learnt from "
        "labels alone."
    )


def _scheme_in_words(scheme: SchemeConfig) -> Iterator[str]:
    """How the networks of a scheme without a plain teacher come about."""
    count = len(scheme.networks_by_name())
    if isinstance(scheme, BornAgainConfig):
        yield (
            f"{count} generations were trained one after the other, each from fresh weights, as long as the "
            "control and on the same batches; each but the first was taught by the one before. The last is "
            f"the student: its whole chain took {count} times the control's steps."
        )
    if isinstance(scheme, MutualConfig):
        alike = list(scheme.networks_by_name().values()).count(None)
        yield (
            f"{count} peers learnt together, each from the labels and the answers of the others. The student "
            f"is the one that did best on validation of the {alike} with its architecture; the first peer "
            "has the control's initial weights. A choice among several is an advantage over the control."
        )
    if isinstance(scheme, DeepSupervisionConfig):
        yield (
            "The student has early exits, taught by the labels and its own deepest answer. Its accuracy is "
            "that of the deepest answer; its parameters, multiply-adds and latency count all exits."
        )


def _without_lesson(experiment: Experiment) -> str:
    """What a control learns from."""
    if isinstance(experiment.task, ImageFromNoise):
        return "a discriminator of the same initial weights alone, and that from real images"
    if not isinstance(experiment.task, ImageToImage):
        return "the labels alone"
    if not experiment.task.has_truth:
        return "the teacher's images alone, pixel by pixel, as there is no other truth"
    game = isinstance(experiment.recipe.scheme, AdversarialConfig)
    return "the true images" + (" and a discriminator of the same initial weights" if game else " alone")


def _lesson(recipe: Recipe) -> str:
    return {
        "offline": "from the teacher",
        "on_policy": "from the teacher, also about texts of its own",
        "born_again": "from the generation before",
        "mutual": "from its peers",
        "deep_supervision": "through its exits",
        "mean_teacher": "from the average of its own weights",
        "smoothed_labels": "from smoothed labels",
        "labels": "from nothing else",
        "adversarial": "from all that the teacher adds",
    }[recipe.scheme.kind]


def _terms(experiment: Experiment, objective: Objective, cells: Sequence[Finished]) -> Iterator[TermRow]:
    """The terms; a weight that was measured is the mean over seeds, and each seed's is told."""
    made = isinstance(experiment.task, ImageToImage | ImageFromNoise)
    if objective.supervised is not None or not made:
        yield TermRow(name="labels", loss="image_l1" if made else "cross-entropy", weight=objective.labels)
    for name, term in objective.terms.items():
        options = ", ".join(f"{key} {value}" for key, value in term.options.items())
        chosen = [cell.weights[name] for cell in cells if name in cell.weights]
        if chosen:
            seeds = ", ".join(f"{weight:.4g}" for weight in chosen)
            options += f"; weight auto, share {term.share:g} of the labels' gradient, by seed: {seeds}"
        weight = sum(chosen) / len(chosen) if chosen else term.weight
        yield TermRow(name=name, loss=term.function.__name__, weight=weight, detail=options)
    if isinstance(experiment.recipe.scheme, AdversarialConfig):
        yield from _game(experiment.recipe.scheme)


def _game(scheme: AdversarialConfig) -> Iterator[TermRow]:
    """What the two networks of a game minimise beside the terms."""
    conditional = ", sees input and image" if scheme.conditional else ""
    yield TermRow(
        name="adversarial", loss=scheme.game, weight=scheme.weight, detail="of the generator's phase"
    )
    detail = f"of the discriminator's phase{conditional}"
    yield TermRow(name="discriminator", loss=scheme.game, weight=1.0, detail=detail)
    if scheme.r1:
        yield TermRow(name="r1", loss="gradient penalty", weight=scheme.r1, detail=detail)
    yield TermRow(name="variety", loss="spread within a batch", weight=0.0, detail="watched only")


def _temperature(objective: Objective) -> float:
    """The first term's temperature, or 1."""
    found = (term.options.get("temperature") for term in objective.terms.values())
    return next((float(value) for value in found if value is not None), 1.0)
