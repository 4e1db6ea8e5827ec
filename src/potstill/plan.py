"""What a run would do and cost, shown before it does it (``potstill run --dry``)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from potstill import distributed, measure
from potstill.data.dataset import Rows
from potstill.early_exits import prospect
from potstill.experiment import ARMS, Arm, Experiment
from potstill.filling import describe_cache, stored
from potstill.schemes.settings import AnyScheme
from potstill.train.course import Course, total_steps

__all__ = ["describe_plan"]

TIMED_STEPS = 3


def describe_plan(experiment: Experiment, *, control: bool) -> Iterator[str]:
    """Lines of text: models, layer plan, splits, steps, and a measured estimate of the time."""
    recipe, splits = experiment.recipe, experiment.splits
    if recipe.teacher is not None and experiment.known is not None and stored(experiment):
        yield f"teacher: {recipe.teacher.model}, its cache is full: it is not loaded"
    elif recipe.teacher is not None and experiment.teacher is not None:
        yield f"teacher: {_model_line(experiment, 'teacher', recipe.teacher.model, experiment.teacher)}"
    student = experiment.student(recipe.seed)
    yield f"student: {_model_line(experiment, 'student', recipe.student.model, student)}"
    yield (
        f"data: {len(splits.train)} training, {len(splits.validation)} validation, {len(splits.test)} test "
        f"samples, {experiment.task.describe_data(splits.train)}"
    )
    yield from (f"note: {note}" for note in experiment.notes)
    yield f"precision: {experiment.precision.reason}"
    scheme = experiment.scheme("student", recipe.seed)
    stages = ", ".join(f"{stage.name} ({stage.share:g})" for stage in scheme.stages)
    yield f"scheme: {recipe.scheme.kind}; stages in lengths of the training: {stages}"
    yield "matched:"
    yield from (f"  {line}" for line in scheme.objective.describe())
    yield from describe_cache(experiment)
    yield from prospect(experiment)
    loader, _ = experiment.training(recipe.seed)
    steps = {"student": Course(loader, recipe.train, scheme.stages).total}
    if control:
        steps = {"control": total_steps(loader, recipe.train)} | steps
    each = str(steps["student"]) if len(set(steps.values())) == 1 else " and ".join(map(str, steps.values()))
    size = recipe.train.batch_size
    yield f"training: {recipe.seeds} seed(s) x {len(steps)} arm(s) x {each} steps of {size}"
    seconds = {arm: _seconds_a_step(experiment, arm, scheme) for arm in ARMS if arm in steps}
    total = recipe.seeds * sum(steps[arm] * value for arm, value in seconds.items())
    rates = ", ".join(f"{arm} {value * 1e3:.0f} ms a step" for arm, value in seconds.items())
    yield f"estimate: {_duration(total)} of training here ({rates}, measured over {TIMED_STEPS} steps)"


def _model_line(experiment: Experiment, role: str, spec: str, model: nn.Module) -> str:
    inputs = experiment.inputs()[role]
    return (
        f"{spec}, {measure.parameters(model):,} parameters, {measure.macs_of_one(model, inputs):,} MACs, "
        f"{measure.size_bytes(model):,} bytes, {experiment.task.describe_input(role)}"
    )


def _seconds_a_step(experiment: Experiment, arm: Arm, student_scheme: AnyScheme) -> float:
    """Median seconds of forward and backward of one batch of the last stage; the weights stay as they are."""
    seed = experiment.recipe.seed
    scheme = student_scheme if arm == "student" else experiment.scheme(arm, seed)
    loader, prepare = experiment.training(seed, arm)
    scheme.train()
    stage = scheme.stages[-1]
    scheme.enter(stage.name)
    times = []
    for rows in _first(loader.epoch(0), TIMED_STEPS + 1):
        watch = measure.Stopwatch()
        batch = prepare(*rows, 0)
        for phase in stage.phases:
            with experiment.precision.autocast(experiment.device):
                step = scheme(batch, phase)
            step.loss.backward()
        times.append(watch.seconds)
    distributed.barrier()
    timed = sorted(times[1:] or times)
    return timed[len(timed) // 2]


def _first(batches: Iterator[Rows], count: int) -> Iterator[Rows]:
    for _, batch in zip(range(count), batches, strict=False):
        yield batch


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
