"""One recipe from start to finish: load, check the teacher, train the cells, conclude, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from potstill import distributed, environment
from potstill.answering import answer_prompts, answers_first
from potstill.assembly.load import load_experiment, search_path
from potstill.cells import observer_of, train_cells, train_told
from potstill.concluding import of_teacher, report_cells, teacher_metric
from potstill.config import Recipe, check_effect, load
from potstill.correction import correct_teacher, corrects
from potstill.early_exits import prospect
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.filling import fill_cache
from potstill.folder import RunFolder
from potstill.loaded import IN_MEMORY, LoadedRun, load_student
from potstill.metrics.quality import shown
from potstill.models.weights import load_weights
from potstill.plan import describe_plan
from potstill.results.summary import table_of
from potstill.rounds.loop import Pruned, Rounds
from potstill.rounds.weighing import weigh
from potstill.views import write_views

__all__ = [
    "IN_MEMORY",
    "LoadedRun",
    "Result",
    "execute",
    "finished",
    "load_student",
    "run",
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
    check_effect(loaded)
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
        of_teacher(experiment, reached, echo)
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
    late = _learns_first(experiment)
    reached = None if late or answers_first(experiment.recipe) else teacher_metric(experiment)
    rounds = _rounds(experiment, folder, control=control, echo=echo)
    facts = _claim(experiment, folder, rounds, resume=resume, echo=echo)
    if late:
        observer = observer_of(experiment, folder, "teacher", experiment.recipe.seed, "teacher, corrected")
        if not correct_teacher(experiment, folder, observer, resume=resume):
            return Result(folder.path, {}, interrupted=True)
    if answers_first(experiment.recipe):
        experiment = answer_prompts(experiment, echo)
    if late or answers_first(experiment.recipe):
        reached = teacher_metric(experiment)
    _introduce(experiment, reached, echo)
    if experiment.shelf is not None and experiment.shelf.config.fill == "before":
        fill_cache(experiment, echo)
    pruned: Pruned | None = None
    if rounds is not None:
        pruned = rounds.run()
        experiment = experiment if pruned is None else pruned.experiment
        cells = None if pruned is None else pruned.cells
    else:
        both = control and experiment.has_control
        cells = train_cells(experiment, folder, resume=resume, control=both, echo=echo)
    if cells is None:
        return Result(folder.path, {}, interrupted=True)
    echo("evaluating on the test part and measuring")
    told: dict[str, Any] = {"teacher_validation": reached, "pruned": pruned}
    told["shared"] = of_teacher(experiment, reached, echo)
    report_cells(experiment, cells, folder, facts, echo=echo, **told)
    return finished(folder, experiment.blank("student"))


def _learns_first(experiment: Experiment) -> bool:
    """Whether the teacher is corrected first; one whose answers are known was when it gave them."""
    return corrects(experiment.recipe) and experiment.known is None


def _claim(
    experiment: Experiment, folder: RunFolder, rounds: Rounds | None, *, resume: bool, echo: Echo
) -> dict[str, Any]:
    """Take the run folder, when nothing more can be found wrong; gives facts of machine and run."""
    facts = environment.describe(
        experiment.device, precision=experiment.precision.name, world_size=distributed.world_size()
    )
    facts["search"] = [str(path) for path in experiment.search]
    ahead = [*prospect(experiment), *([] if rounds is None else [rounds.check()])]
    folder.claim(experiment.recipe, facts, resume=resume)
    write_views(experiment, folder.views)
    if experiment.shelf is not None:
        experiment.shelf.say = echo
    for note in (*experiment.notes, *ahead):
        echo(f"note: {note}")
    return facts


def _introduce(experiment: Experiment, reached: float | None, echo: Echo) -> None:
    """Who teaches, and what it knows."""
    reason = experiment.precision.reason
    if reached is None:
        echo(f"scheme: {experiment.recipe.scheme.kind}, without a teacher; {reason}")
    else:
        value = shown(experiment.task.metric, reached)
        echo(f"teacher: {value} on {len(experiment.splits.validation)} validation samples; {reason}")


def _rounds(experiment: Experiment, folder: RunFolder, *, control: bool, echo: Echo) -> Rounds | None:
    """The rounds of a student that is pruned."""
    if experiment.recipe.prune is None:
        return None
    train_one = partial(train_told, resume=True, echo=echo)  # what a round has begun is gone on with
    return Rounds(experiment, folder, train_one, control=control, echo=echo)


def finished(folder: RunFolder, student: nn.Module | None = None) -> Result:
    """The result of a finished run; ``student`` gets the trained weights."""
    data = folder.read_result()
    if student is not None:
        load_weights(student, folder.student, "student.safetensors")
        student.eval()
    return Result(folder.path, data, student=student)
