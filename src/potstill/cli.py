"""The command line: every verb is a few lines around a function of the package.

Nothing heavy is imported before a verb needs it: ``potstill --help`` answers without torch.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill._version import __version__
from potstill.endings import FAILED, INTERRUPTED, reporting, say
from potstill.errors import UserError

__all__ = ["app", "main"]

app = typer.Typer(
    name="potstill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() and sys.stderr.isatty() else None,  # boxes wrap lines
    help="Distil big neural networks into small ones that you can ship.",
)

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="Where relative paths are looked up first; then POTSTILL_DATA."
    ),
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where in the code an error came up.")]
Round = Annotated[
    int | None,
    typer.Option("--round", metavar="N", help="Of a pruned student, the one after round N, not the last."),
]
Size = Annotated[
    float | None,
    typer.Option(
        "--at-size",
        metavar="SIZE",
        help="Of a pruned student, the largest of at most this: a share, or in the target's unit.",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"potstill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Options before the verb."""


@app.command()
def demo(show: Traceback = False) -> None:
    """Distil a small network on built-in data: no arguments, about a minute, writes potstill-demo/."""
    with reporting(show):
        from potstill.demo import demo as run_demo

        result = run_demo(Path("potstill-demo"), print)
        _finish(result, ["potstill", "demo"])


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped name.")] = "",
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="The run folder; runs/RECIPE by default.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly.")] = False,
    dry: Annotated[bool, typer.Option("--dry", help="Show the plan and its cost; train nothing.")] = False,
    no_control: Annotated[
        bool, typer.Option("--no-control", help="Do not train the student without distillation: no verdict.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="STEP",
            help="cache: ask the teacher for all it lacks. responses: let it answer. importance: score.",
        ),
    ] = None,
    shift: Annotated[
        bool, typer.Option("--shift", help="Also try early exits on blurred, noisy and darker images.")
    ] = False,
    names: Annotated[bool, typer.Option("--list", help="List the shipped recipes.")] = False,
    show: Traceback = False,
) -> None:
    """Run a recipe: check the teacher, train control and student, compare them, write the report."""
    with reporting(show):
        if names:
            from potstill.config import shipped_recipes

            print("\n".join(shipped_recipes()))
            return
        if not recipe:
            raise UserError("RECIPE", "missing; expected a file or a shipped name (potstill run --list)")
        from potstill.distributed import stop
        from potstill.run import run as run_recipe

        overrides = [*(settings or []), *(["scheme.shift=true"] if shift else [])]
        try:
            result = run_recipe(
                recipe,
                data=data,
                out=out,
                overrides=overrides,
                resume=resume,
                control=not no_control,
                dry=dry,
                only=only,
            )
            again = [*_launcher(), "run", recipe, "--out", str(result.folder)]
            again += ["--data", str(data)] if data else []
            again += [word for setting in overrides for word in ("--set", setting)]
            again += ["--no-control"] if no_control else []
            _finish(result, [*again, "--resume"])
        finally:
            stop()


def _launcher() -> list[str]:
    """How this process was started, as words to type."""
    processes = os.environ.get("WORLD_SIZE", "1")
    return ["torchrun", "--nproc-per-node", processes, "-m", "potstill"] if processes != "1" else ["potstill"]


def _finish(result: Any, again: list[str]) -> None:
    """The table and where the report lies; or how to go on after an interruption."""
    from potstill.distributed import is_main

    if result.interrupted:
        say(f"interrupted, and saved; go on with: {shlex.join(again)}")
        raise typer.Exit(INTERRUPTED)
    if result.data and is_main():
        print(result.table())
        print(f"report: {result.report}")


@app.command()
def compare(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped name.")],
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="NAMES", help="Such as kl,attention_transfer,kl+feature_mse."),
    ] = None,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="YAML of named distill blocks.")
    ] = None,
    vary: Annotated[
        Path | None, typer.Option("--vary", metavar="FILE", help="YAML of named settings of the recipe.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", help="Runs of each; the recipe's by default.")
    ] = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="runs/RECIPE-compared by default.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", help="Train N at once, each with one thread.")
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Said or not, a comparison goes on where it was stopped.")
    ] = False,
    show: Traceback = False,
) -> None:
    """Train the control and several methods with several seeds, and tell which gained, and how surely."""
    del resume
    with reporting(show):
        from potstill.compare import compare_methods, compare_variations

        options: dict[str, Any] = {
            "rows": rows,
            "seeds": seeds,
            "data": data,
            "out": out,
            "overrides": settings or [],
        }
        if vary is None:
            found: Any = compare_methods(recipe, methods, jobs=jobs, **options)
        else:
            found = compare_variations(recipe, vary, methods, jobs=jobs, **options)
        if found.interrupted:
            say(f"interrupted, and saved; go on with: {shlex.join(['potstill', *sys.argv[1:]])}")
            raise typer.Exit(INTERRUPTED)
        print(found.table())
        print(f"report: {found.page}")
        if found.failed:
            say(f"failed: {', '.join(found.failed)}; the table says why")
            raise typer.Exit(FAILED)


@app.command()
def measure(
    run_folder: RunPath,
    data: Data = None,
    number: Round = None,
    at_size: Size = None,
    show: Traceback = False,
) -> None:
    """Parameters, MACs, bytes and latency of teacher and student, timed in turns."""
    with reporting(show):
        from potstill.environment import processor
        from potstill.loaded import load_student
        from potstill.measure import measure as measure_models

        loaded = load_student(run_folder, data, round_number=number, at_size=at_size)
        networks = {} if loaded.teacher is None else {"teacher": loaded.teacher}
        found = measure_models({**networks, "student": loaded.student}, loaded.inputs)
        print(f"{'':8} {'parameters':>12} {'MACs':>14} {'bytes':>12}   latency in ms, median (10 % to 90 %)")
        for name, one in found.items():
            times = ", ".join(
                f"batch {batch}: {time.median_ms:.2f} ({time.low_ms:.2f} to {time.high_ms:.2f})"
                for batch, time in one.latency_ms.items()
            )
            print(f"{name:8} {one.parameters:>12,} {one.macs:>14,} {one.bytes:>12,}   {times}")
        print(f"on {processor()}")


@app.command()
def export(
    run_folder: RunPath,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The ONNX file; RUN/student.onnx by default.")
    ] = None,
    data: Data = None,
    number: Round = None,
    at_size: Size = None,
    show: Traceback = False,
) -> None:
    """Write the student as ONNX, checked with onnxruntime; one with early exits also in segments."""
    with reporting(show):
        from potstill.deploy.boxes_export import export_boxes
        from potstill.deploy.export import export_onnx
        from potstill.deploy.generator_export import export_generator
        from potstill.deploy.segments_export import export_run_exits
        from potstill.deploy.text_export import export_text
        from potstill.folder import RunFolder
        from potstill.loaded import load_student
        from potstill.models.exits import WithExits

        loaded = load_student(run_folder, data, round_number=number, at_size=at_size)
        path = out or run_folder / "student.onnx"
        if loaded.finds_boxes:
            print(export_boxes(loaded, path).describe())
        elif loaded.reads_texts:
            print(export_text(loaded, path).describe())
        else:
            write = export_generator if loaded.makes_images else export_onnx
            print(write(loaded, path).describe())
        if isinstance(loaded.student, WithExits):
            print(export_run_exits(loaded, RunFolder(run_folder).early_exit, path.with_name("early_exit")))


@app.command()
def report(
    run_folder: RunPath,
    beside: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Another run, to compare the early exits with its networks."),
    ] = None,
    show: Traceback = False,
) -> None:
    """Draw the report of a finished run, or the page of a comparison, again."""
    with reporting(show):
        from potstill.report import render, render_comparison

        compared = beside is None and (run_folder / "comparison.json").is_file()
        print(f"report: {render_comparison(run_folder) if compared else render(run_folder, beside)}")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method's page.")] = None,
    show: Traceback = False,
) -> None:
    """What can be matched: formula, paper, what it needs, default weight."""
    with reporting(show):
        from potstill.methods import listing, page

        print(listing() if name is None else page(name))


def main() -> None:
    """Entry point of ``potstill`` and of ``python -m potstill``."""
    try:
        app()
    except SystemExit as leaving:
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            raise
        # One of several processes: gloo's threads may outlive the interpreter, and abort it as it unloads.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
