"""What finished cells amount to: ``result.json`` and the page, and what no training changes of either."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from potstill import distributed
from potstill.cells import Finished
from potstill.early_exits import decide
from potstill.experiment import Experiment
from potstill.files import write_json
from potstill.filling import conclude_cache
from potstill.folder import RunFolder
from potstill.report.content import ReportContent
from potstill.results.drawings import drawn, sheets
from potstill.results.hints import hints
from potstill.results.insides import insides
from potstill.results.outcome import Shared, conclude, measure_models, predict_teacher
from potstill.results.recovery import recovered
from potstill.results.story import tell
from potstill.results.summary import warnings_of
from potstill.results.writing import written
from potstill.rounds.loop import Pruned

__all__ = ["of_teacher", "report_cells", "teacher_metric"]

Echo = Callable[[str], None]


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


def of_teacher(experiment: Experiment, reached: float | None, echo: Echo) -> Shared:
    """What is found out of the networks that no training changes; a cache is finished with it."""
    shared = Shared(predict_teacher(experiment), measure_models(experiment))
    conclude_cache(experiment, reached, shared.teacher, shared.measured, echo)
    return shared


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
    """Conclude finished cells and write ``result.json`` and the report into their run folder.

    Args:
        experiment: The loaded recipe.
        cells: All that was trained.
        folder: The run folder.
        facts: Of the machine and the run, for the report.
        teacher_validation: The teacher's metric on validation.
        echo: Where warnings and the early exits' line go.
        shared: What another run with these networks and this test part found out of them.
        pruned: The rounds, where the student was pruned.
    """
    outcome = conclude(experiment, cells, folder, shared)
    result = outcome.result
    if pruned is not None:
        result["prune"] = {**pruned.figures, **recovered(pruned, outcome)}
    exits = decide(experiment, folder, outcome.shipped)
    warnings = [*warnings_of(result), *(exits.warnings if exits else ())]
    texts = written(experiment, outcome)
    warnings += texts.get("warnings", ())
    extra: dict[str, Any] = {name: texts[name] for name in ("generations", "likeness") if name in texts}
    extra |= {"pictures": drawn(experiment, outcome), "sheets": sheets(experiment, outcome)}
    extra |= {"insides": insides(experiment, outcome)}
    for key in ("drafts", "likeness", "writing", "harness"):
        for name, found in texts.get(key, {}).items():
            result["models"][name][key] = found if isinstance(found, dict) else asdict(found)
    if exits is not None:
        result["early_exit"] = exits.figures
        extra |= {"leavers": exits.leavers, "exit_bins": exits.bins}
        echo(exits.summary)
    for warning in warnings:
        echo(f"warning: {warning}")
    if distributed.is_main():
        content = tell(experiment, outcome, facts, teacher_validation=teacher_validation, warnings=warnings)
        _write(experiment, replace(content, **extra), result, folder)
    distributed.barrier()


def _write(
    experiment: Experiment, content: ReportContent, result: Mapping[str, Any], folder: RunFolder
) -> None:
    from potstill.report import render

    if content.detected is not None:
        shown = [scene.index for scene in content.detected.scenes[:2]]
        content = replace(content, detected=replace(content.detected, hints=hints(experiment, shown)))
    content.save(folder.content)
    write_json(folder.result, result)
    render(folder.path)
