"""The whole comparison: claim the folder, train what is missing, conclude, write tables and page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from potstill import environment
from potstill._version import __version__
from potstill.answering import answers_first
from potstill.assembly.load import load_experiment, rehearse, search_path
from potstill.cells import Finished
from potstill.compare.cell import experiment_of, read_cell, reason, remembering
from potstill.compare.jobs import Outcomes, check_jobs, run_here, run_in_processes
from potstill.compare.lineup import CONTROL, line_up
from potstill.compare.place import Job, Place
from potstill.compare.standings import Comparison, Scores, scores_of, standings
from potstill.compare.tables import csv_table, markdown_table
from potstill.concluding import report_cells, teacher_metric
from potstill.config import Recipe, load
from potstill.correction import corrects
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.files import read_json, write_atomic, write_json, write_text
from potstill.folder import RunFolder
from potstill.metrics.quality import shown
from potstill.results.outcome import Shared, measure_models, predict_teacher

__all__ = ["compare_methods"]

Echo = Callable[[str], None]


def compare_methods(
    recipe: str | Path,
    methods: str | None = None,
    *,
    rows: Path | Mapping[str, Any] | None = None,
    seeds: int | None = None,
    data: Path | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    jobs: int = 1,
    shared: Shared | None = None,
    echo: Echo = print,
) -> Comparison:
    """Train the control and every method with every seed; ``potstill compare`` is this function.

    All see the same teacher, budget, initial weights, data order and views. What is finished is not trained
    again, what was interrupted goes on, and more methods or seeds may join a finished comparison.

    Args:
        recipe: A recipe file or the name of a shipped one; its ``distill`` block is replaced.
        methods: Names with commas between them, ``a+b`` for two terms together.
        rows: Named ``distill`` blocks, or a YAML file of them.
        seeds: Runs of each method; the recipe's ``seeds`` by default.
        data: Folder where relative paths are looked up first.
        out: The folder; ``runs/<recipe name>-compared`` by default.
        overrides: ``a.b=value`` settings on top of the recipe.
        jobs: Cells trained at once, each in a process with one thread.
        shared: What another comparison with these networks and this test part found out of them.
        echo: Where lines of text go.

    Returns:
        The comparison; a method that failed is a row of it and stops no other.

    Raises:
        UserError: For anything wrong with the recipe, the names, the data or the folder, and if the
            control fails.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("compare", "starts its processes itself (--jobs); run it without torchrun")
    check_jobs(jobs)
    blocks = line_up(methods, rows)
    base, count = _base(recipe, overrides, seeds)
    numbers = [base.seed + number for number in range(count)]
    place = Place((out or Path("runs") / f"{Path(recipe).stem}-compared").resolve())
    if base.teacher is None:
        raise UserError("teacher", "missing; compare is for recipes in which a trained teacher teaches")
    if answers_first(base):
        raise UserError("teacher.responses", "has no meaning in a comparison yet; leave it out")
    if corrects(base):
        raise UserError(
            "correct", "has no meaning in a comparison yet; correct the teacher in a run, save it, name it"
        )
    experiment = remembering(load_experiment(base, search_path(data)))
    facts = environment.describe(experiment.device, precision=experiment.precision.name, world_size=1)
    facts |= {"jobs": jobs, "threads": 1 if jobs > 1 else facts["threads"]}
    facts["search"] = [str(path) for path in experiment.search]
    validation = _teacher_validation(experiment, place)
    place.claim(experiment.recipe, blocks, count, facts)
    with place.locked() as lock:
        write_json(place.teacher, {"validation": validation})
        contest = _Contest(experiment, place, list(blocks), numbers, facts, validation, shared, echo)
        outcomes = contest.train(jobs, lock)
        if outcomes.interrupted:
            return Comparison(place.path, {}, interrupted=True)
        scores = contest.scores(outcomes.failed)
        figures = contest.conclude(outcomes.failed, scores)
        return Comparison(place.path, figures, scores=scores, shared=contest.shared)


def _base(recipe: str | Path, overrides: Sequence[str], seeds: int | None) -> tuple[Recipe, int]:
    """What all cells have in common, and the number of seeds; it may grow later and is no part of it."""
    for override in overrides:
        if override.partition("=")[0].split(".")[0] == "distill":
            raise UserError(
                f"--set {override}", "distill is replaced by each method's own; give blocks in a --rows file"
            )
    if seeds is not None and seeds < 1:
        raise UserError("--seeds", f"must be >= 1, got {seeds}")
    loaded = load(recipe, overrides)
    return replace(loaded, distill={}, seeds=1), seeds or loaded.seeds


def _teacher_validation(experiment: Experiment, place: Place) -> float:
    """The teacher's metric on validation, checked once."""
    if place.teacher.is_file():
        return float(read_json(place.teacher)["validation"])
    reached = teacher_metric(experiment)
    assert reached is not None, "a comparison has a teacher"
    return reached


@dataclass
class _Contest:
    """A claimed comparison at work."""

    experiment: Experiment
    place: Place
    methods: list[str]
    seeds: list[int]
    facts: Mapping[str, Any]
    validation: float
    shared: Shared | None
    echo: Echo

    def train(self, jobs: int, lock: int | None) -> Outcomes:
        """Train what is not finished, seed by seed, so that an interrupted comparison has whole rows."""
        every = [Job(method, seed) for seed in self.seeds for method in (CONTROL, *self.methods)]
        missing = [job for job in every if not self.place.done(job)]
        broken = self._broken(dict.fromkeys(job.method for job in missing if job.method != CONTROL))
        todo = [job for job in missing if job.method not in broken]
        titles = [f"{job.name} ({every.index(job) + 1}/{len(every)})" for job in todo]
        reached = shown(self.experiment.task.metric, self.validation)
        self.echo(
            f"teacher: {reached} on {len(self.experiment.splits.validation)} validation samples; "
            f"{len(every)} cells, {len(every) - len(missing)} finished already, {len(todo)} to train"
        )
        if jobs > 1:
            done = run_in_processes(self.place, todo, titles, jobs, lock, self.echo)
        else:
            done = run_here(self.experiment, self.place, todo, titles, self.echo)
        done.failed.update(broken)
        return done

    def _broken(self, methods: Mapping[str, None]) -> dict[str, str]:
        """Methods that cannot take one step, found before hours of training."""
        found = {}
        for method in methods:
            try:
                rehearse(experiment_of(self.experiment, self.place.recipe(method)))
            except Exception as error:  # a row of the table; the others go on
                found[method] = reason(error)
                self.echo(f"{method}: failed: {found[method]}")
        return found

    def scores(self, failed: Mapping[str, str]) -> dict[str, Scores]:
        """What the control and all that did not fail had right."""
        good = [CONTROL, *(method for method in self.methods if method not in failed)]
        return {method: scores_of(self.experiment, self.place, method, self.seeds) for method in good}

    def conclude(self, failed: Mapping[str, str], scores: Mapping[str, Scores]) -> dict[str, Any]:
        """Each method's own report, the tables and the page."""
        good = [method for method in self.methods if method not in failed]
        controls = [self._cell(CONTROL, seed) for seed in self.seeds]
        for method in good:
            if not self._reported(method):
                self.shared = self.shared or Shared(self._teacher_test(), measure_models(self.experiment))
                self._report(method, controls, self.shared)
        data = standings(self.experiment, self.place, self.methods, self.seeds, failed, scores)
        task, test, recipe = self.experiment.task, self.experiment.splits.test, self.experiment.recipe
        data |= {
            "potstill": __version__,
            "teacher": {
                "validation": self.validation,
                "test": task.value(self._teacher_test(), test),
            },
            "title": f"{recipe.student.model} taught by {recipe.teacher.model if recipe.teacher else ''}",
            "recipe": RunFolder(self.place.path).recipe.read_text(encoding="utf-8"),
            "environment": dict(self.facts),
            "histories": {
                method: [self._cell(method, seed).history for seed in self.seeds]
                for method in (CONTROL, *good)
            },
        }
        self._write(data)
        return data

    def _write(self, data: dict[str, Any]) -> None:
        from potstill.report import render_comparison

        machine = f"{self.facts['processor']}, {self.facts['threads']} thread(s) a cell"
        write_text(self.place.table("csv"), csv_table(data))
        write_text(self.place.table("md"), markdown_table(data, str(self.facts["command"]), machine))
        write_json(self.place.table("json"), data)
        render_comparison(self.place.path)

    def _cell(self, method: str, seed: int) -> Finished:
        return read_cell(self.experiment, self.place, Job(method, seed))

    def _reported(self, method: str) -> bool:
        folder = self.place.run(method)
        return (
            folder.report.is_file()
            and folder.finished
            and int(folder.read_result()["seeds"]) == len(self.seeds)
        )

    def _teacher_test(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The teacher's answers on the test part, computed once."""
        path = self.place.teacher_test
        if not path.is_file():
            answers = self.shared.teacher if self.shared else predict_teacher(self.experiment)
            with write_atomic(path) as aside:
                np.save(aside, np.asarray(answers))
        return np.asarray(np.load(path), dtype=np.float32)

    def _report(self, method: str, controls: Sequence[Finished], shared: Shared) -> None:
        folder, experiment = self.place.run(method), experiment_of(self.experiment, self.place.recipe(method))
        cells = [*controls, *(self._cell(method, seed) for seed in self.seeds)]
        rows = [(cell.folder / "metrics.jsonl").read_text(encoding="utf-8") for cell in cells]
        write_text(folder.metrics, "".join(rows))
        report_cells(
            experiment,
            cells,
            folder,
            self.facts,
            teacher_validation=self.validation,
            echo=lambda line: None,
            shared=shared,
        )
