"""One recipe from start to finish: load, check the teacher, train the cells, conclude, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from potstill import distributed, environment
from potstill.answering import answer_prompts, answers_first
from potstill.assembly.load import load_experiment, search_path
from potstill.cells import Cell, Finished, train_cell
from potstill.config import Recipe, load
from potstill.correction import correct_teacher, corrects
from potstill.early_exits import decide, prospect
from potstill.errors import UserError
from potstill.experiment import ARMS, Experiment
from potstill.files import write_json
from potstill.filling import conclude_cache, fill_cache
from potstill.folder import RunFolder
from potstill.loaded import IN_MEMORY, LoadedRun, load_student
from potstill.metrics.quality import shown
from potstill.models.weights import load_weights
from potstill.plan import describe_plan
from potstill.results.drawings import drawn, sheets
from potstill.results.hints import hints
from potstill.results.insides import insides
from potstill.results.outcome import Shared, conclude, measure_models, predict_teacher
from potstill.results.recovery import recovered
from potstill.results.story import tell
from potstill.results.summary import table_of, warnings_of
from potstill.results.writing import written
from potstill.rounds.loop import Pruned, Rounds
from potstill.rounds.weighing import weigh
from potstill.train.observe import Observer, make_observer
from potstill.views import write_views

__all__ = [
    "IN_MEMORY",
    "LoadedRun",
    "Result",
    "execute",
    "finished",
    "load_student",
    "report_cells",
    "run",
    "teacher_metric",
]

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What a run found out.

    Attributes:
        folder: The run folder.
        data: The contents of ``result.json``; empty for a dry or an interrupted run.
        interrupted: The user stopped it; ``--resume`` goes on.
        student: The trained student, in eval mode on the CPU, or ``None``.
    """

    folder: Path
    data: dict[str, Any]
    interrupted: bool = False
    student: nn.Module | None = None

    @property
    def gain(self) -> float | None:
        """The metric of the student less the control's, positive where it is better; ``None`` without one."""
        return self.data.get("gain")

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the gain."""
        both = self.data.get("interval")
        return None if both is None else (both[0], both[1])

    @property
    def verdict(self) -> str | None:
        """``better``, ``same`` or ``worse``; ``None`` without a control."""
        return self.data.get("verdict")

    @property
    def report(self) -> Path:
        """The page to look at."""
        return RunFolder(self.folder).report

    def table(self) -> str:
        """The arms as a short table of text, with the verdict below."""
        return table_of(self.data) if self.data else ""


def run(
    recipe: str | Path,
    *,
    data: Path | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    control: bool = True,
    dry: bool = False,
    only: str | None = None,
    echo: Echo = print,
) -> Result:
    """Run a recipe; the command ``potstill run`` is this function.

    Args:
        recipe: A recipe file or the name of a shipped one.
        data: Folder where relative paths of the recipe are looked up first.
        out: The run folder; ``runs/<recipe name>`` by default.
        overrides: ``a.b=value`` settings on top of the recipe.
        resume: Go on with the run in ``out``; an empty folder starts anew, a finished run is returned.
        control: Also train the same student without distillation; without it there is no verdict.
        dry: Load and show everything, train nothing, write only ``views.png``, where there is augmentation.
        only: ``importance`` scores what could be pruned, ``cache`` asks the teacher for all that its cache
            lacks, ``responses`` for its answers to the prompts; nothing else is done.
        echo: Where lines of text go; only the main rank speaks.

    Raises:
        UserError: For anything wrong with the recipe, the data, the models or the folder.
    """
    distributed.start()
    say: Echo = echo if distributed.is_main() else _silent
    loaded = load(recipe, overrides)
    _check_step(only, loaded)
    folder = RunFolder((out or Path("runs") / Path(recipe).stem).resolve())
    if only is None and resume and folder.finished and folder.report.is_file():
        folder.check_same(loaded)
        say(f"{folder.path} is finished already")
        return finished(folder)
    experiment = load_experiment(folder.settled(loaded) if resume else loaded, search_path(data))
    if dry:
        _show(experiment, folder, control=control, echo=say)
        return Result(folder.path, {})
    if only is not None:
        _one_step(only, experiment, folder, echo=say)
        return Result(folder.path, {})
    return execute(experiment, folder, resume=resume, control=control, echo=say)


def _check_step(only: str | None, recipe: Recipe) -> None:
    """Refuse a step of which the recipe has nothing to do."""
    if only not in (None, "cache", "responses", "importance"):
        raise UserError("--only", f"expected cache, responses or importance, got {only!r}")
    if only == "cache" and (recipe.teacher is None or recipe.teacher.cache is None):
        raise UserError("teacher.cache", "missing; there is nothing for --only cache to fill")
    if only == "importance" and recipe.prune is None:
        raise UserError("prune", "missing; there is nothing for --only importance to score")
    if only == "importance" and recipe.prune is not None and recipe.prune.target is None:
        raise UserError("prune.target", "missing; --only importance scores the parts that it makes go")
    if only == "responses" and not answers_first(recipe):
        raise UserError("teacher.responses", "missing; there is nothing for --only responses to ask")
    if only in ("cache", "responses") and corrects(recipe):
        raise UserError("--only", f"{only}: the teacher is corrected in a run first; leave --only out")


def _show(experiment: Experiment, folder: RunFolder, *, control: bool, echo: Echo) -> None:
    """Plan, cost and views of a run that is not made."""
    for line in describe_plan(experiment, control=control and experiment.has_control):
        echo(line)
    rounds = _rounds(experiment, folder, control=control, echo=echo)
    if rounds is not None:
        echo(rounds.check())
    if folder.unclaimed and write_views(experiment, folder.views):
        echo(f"views: {folder.views}")


def _one_step(only: str, experiment: Experiment, folder: RunFolder, *, echo: Echo) -> None:
    """What ``--only`` names, and nothing else."""
    if only == "cache":
        reached = teacher_metric(experiment)
        fill_cache(experiment, echo)
        _of_teacher(experiment, reached, echo)
    elif only == "importance":
        rounds = _rounds(experiment, folder, control=False, echo=echo)
        assert rounds is not None, "a recipe that prunes has rounds"
        echo(f"importance: {weigh(rounds.decider)}")
    else:
        answer_prompts(experiment, echo)


def _silent(line: str) -> None:
    del line


def execute(experiment: Experiment, folder: RunFolder, *, resume: bool, control: bool, echo: Echo) -> Result:
    """Train and conclude a loaded experiment in its run folder; see :func:`run`."""
    recipe = experiment.recipe
    validation = experiment.splits.validation
    corrected = corrects(recipe) and experiment.known is None  # what is known was corrected when it answered
    reached = None if corrected or answers_first(recipe) else teacher_metric(experiment)
    facts = environment.describe(
        experiment.device, precision=experiment.precision.name, world_size=distributed.world_size()
    )
    facts["search"] = [str(path) for path in experiment.search]
    ahead = list(prospect(experiment))
    rounds = _rounds(experiment, folder, control=control, echo=echo)
    if rounds is not None:
        ahead.append(rounds.check())
    folder.claim(recipe, facts, resume=resume)
    write_views(experiment, folder.views)
    if experiment.shelf is not None:
        experiment.shelf.say = echo
    for note in (*experiment.notes, *ahead):
        echo(f"note: {note}")
    if corrected:
        observer = _observer(experiment, folder, "teacher", recipe.seed, "teacher, corrected")
        if not correct_teacher(experiment, folder, observer, resume=resume):
            return Result(folder.path, {}, interrupted=True)
    if answers_first(recipe):
        experiment = answer_prompts(experiment, echo)
    if corrected or answers_first(recipe):
        reached = teacher_metric(experiment)
    if reached is not None:
        value = shown(experiment.task.metric, reached)
        echo(f"teacher: {value} on {len(validation)} validation samples; {experiment.precision.reason}")
    else:
        echo(f"scheme: {recipe.scheme.kind}, without a teacher; {experiment.precision.reason}")
    if experiment.shelf is not None and experiment.shelf.config.fill == "before":
        fill_cache(experiment, echo)
    control = control and experiment.has_control
    pruned: Pruned | None = None
    if rounds is not None:
        pruned = rounds.run()
        experiment = experiment if pruned is None else pruned.experiment
        cells = None if pruned is None else pruned.cells
    else:
        cells = _cells(experiment, folder, resume=resume, control=control, echo=echo)
    if cells is None:
        return Result(folder.path, {}, interrupted=True)
    echo("evaluating on the test part and measuring")
    shared = _of_teacher(experiment, reached, echo)
    told: dict[str, Any] = {"teacher_validation": reached, "shared": shared, "pruned": pruned}
    report_cells(experiment, cells, folder, facts, echo=echo, **told)
    return finished(folder, experiment.blank("student"))


def _of_teacher(experiment: Experiment, reached: float | None, echo: Echo) -> Shared:
    """What depends on no training; a cache, where there is one, is finished with it."""
    shared = Shared(predict_teacher(experiment), measure_models(experiment))
    conclude_cache(experiment, reached, shared.teacher, shared.measured, echo)
    return shared


def teacher_metric(experiment: Experiment) -> float | None:
    """The teacher's metric on validation, where there is a teacher.

    Raises:
        UserError: If it is none worth listening to.
    """
    if experiment.known is not None:
        return experiment.known.metric
    if experiment.teacher is None:
        return None
    validation = experiment.splits.validation
    answers = experiment.task.predict(experiment.teacher, experiment.evaluation(validation), "teacher")
    return experiment.task.check_teacher(answers.numpy(), validation)


def report_cells(
    experiment: Experiment,
    cells: Sequence[Finished],
    folder: RunFolder,
    facts: Mapping[str, Any],
    *,
    teacher_validation: float | None,
    echo: Echo,
    shared: Shared | None = None,
    pruned: Pruned | None = None,
) -> None:
    """Conclude finished cells and write ``result.json`` and the report into their run folder."""
    outcome = conclude(experiment, cells, folder, shared)
    if pruned is not None:
        outcome.result["prune"] = {**pruned.figures, **recovered(pruned, outcome)}
    exits = decide(experiment, folder, outcome.shipped)
    warnings = [*warnings_of(outcome.result), *(exits.warnings if exits else ())]
    texts = written(experiment, outcome)
    images, drawn_sheets = drawn(experiment, outcome), sheets(experiment, outcome)
    warnings += texts.get("warnings", ())
    alike_inside = insides(experiment, outcome)
    for key in ("drafts", "likeness", "writing", "harness"):
        for name, found in texts.get(key, {}).items():
            outcome.result["models"][name][key] = found if isinstance(found, dict) else asdict(found)
    if exits is not None:
        outcome.result["early_exit"] = exits.figures
        echo(exits.summary)
    for warning in warnings:
        echo(f"warning: {warning}")
    if distributed.is_main():
        from potstill.report import render

        content = tell(experiment, outcome, facts, teacher_validation=teacher_validation, warnings=warnings)
        if exits is not None:
            content = replace(content, leavers=exits.leavers, exit_bins=exits.bins)
        content = replace(
            content,
            generations=texts.get("generations", ()),
            likeness=texts.get("likeness", {}),
            pictures=images,
            sheets=drawn_sheets,
            insides=alike_inside,
        )
        if content.detected is not None:
            shown = [scene.index for scene in content.detected.scenes[:2]]
            content = replace(content, detected=replace(content.detected, hints=hints(experiment, shown)))
        content.save(folder.content)
        write_json(folder.result, outcome.result)
        render(folder.path)
    distributed.barrier()


def _cells(
    experiment: Experiment, folder: RunFolder, *, resume: bool, control: bool, echo: Echo
) -> list[Finished] | None:
    """All cells, seed by seed so that an interrupted run has whole pairs; ``None`` if interrupted."""
    recipe = experiment.recipe
    plan = [
        Cell(arm, recipe.seed + number)
        for number in range(recipe.seeds)
        for arm in ARMS
        if control or arm == "student"
    ]
    finished = []
    for position, cell in enumerate(plan, start=1):
        title = f"{cell.name} ({position}/{len(plan)})"
        done = _train_one(experiment, cell, folder, title, resume=resume, echo=echo)
        if done is None:
            return None
        finished.append(done)
    return finished


def _train_one(
    experiment: Experiment, cell: Cell, folder: RunFolder, title: str, *, resume: bool, echo: Echo
) -> Finished | None:
    """One cell, with its bar and its line of text; ``None`` if interrupted."""
    observer = _observer(experiment, folder, cell.arm, cell.seed, title)
    done = train_cell(experiment, cell, folder, observer, resume=resume)
    if done is None:
        return None
    row = done.history[-1] if done.history else {}
    metric = experiment.task.metric
    reached = shown(metric, row.get(metric, float("nan")))
    echo(
        f"{title}: {reached} on validation after {done.steps} steps, "
        f"{done.seconds:.0f} s, {done.samples_per_second:.3g} samples/s"
    )
    return done


def _rounds(experiment: Experiment, folder: RunFolder, *, control: bool, echo: Echo) -> Rounds | None:
    """The rounds of a student that is pruned."""
    if experiment.recipe.prune is None:
        return None
    train_one = partial(_train_one, resume=True, echo=echo)  # what a round has begun is gone on with
    return Rounds(experiment, folder, train_one, control=control, echo=echo)


def _observer(experiment: Experiment, folder: RunFolder, arm: str, seed: int, title: str) -> Observer:
    return make_observer(
        folder.metrics,
        arm=arm,
        seed=seed,
        title=title,
        tensorboard=folder.path / "tensorboard" if experiment.recipe.train.tensorboard else None,
        main=distributed.is_main(),
    )


def finished(folder: RunFolder, student: nn.Module | None = None) -> Result:
    """The result of a finished run; ``student`` gets the trained weights."""
    data = folder.read_result()
    if student is not None:
        load_weights(student, folder.student, "student.safetensors")
        student.eval()
    return Result(folder.path, data, student=student)
