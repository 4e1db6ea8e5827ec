"""The structure: layers one-way, no cycles, public names, module lengths, light imports."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import potstill
from potstill import losses

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "potstill"

# Lowest first; a module imports from rows above its own, or from its own package or row.
LAYERS: list[set[str]] = [
    {"_version", "errors", "losses"},
    {"batch", "files", "distributed", "measure", "alive", "environment", "specs", "_annotated", "randomness"},
    {"metrics"},
    {"report"},
    {"matching"},
    {"augment", "models", "data", "teachers"},
    {"answers", "cache"},
    {"responses", "harness"},
    {"tasks", "schemes"},
    {"train"},
    {"deploy", "methods"},
    {"prune"},
    {"sections"},
    {"config"},
    {"experiment", "folder"},
    {"assembly"},
    {"answering", "cells", "correction", "views", "filling"},
    {"rounds"},
    {"results"},
    {"early_exits"},
    {"plan", "loaded", "concluding"},
    {"run"},
    {"compare"},
    {"api", "demo", "endings"},
    {"cli"},
    {"__main__", "__init__"},
]
RANK = {name: number for number, row in enumerate(LAYERS) for name in row}
STRANGERS = [("tasks", "schemes"), ("schemes", "tasks")]


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py"))


def home(path: Path) -> str:
    """Top-level module or package of a file."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports from the package, function bodies included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("potstill"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("potstill"):
            assert node.module is not None
            if node.module == "potstill":
                yield from (f"potstill.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_every_module_has_a_layer() -> None:
    assert {home(path) for path in modules()} <= set(RANK)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    mine = home(path)
    for name in imports(path):
        theirs = name.split(".")[1] if "." in name else "__init__"
        if theirs == mine or mine == "__init__":
            continue
        assert RANK[theirs] <= RANK[mine], f"{mine} imports {theirs}, which is higher"
        assert (mine, theirs) not in STRANGERS


def test_there_are_no_cycles_between_modules() -> None:
    names = {
        "potstill."
        + str(path.relative_to(SOURCE).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
        for path in modules()
        if home(path) != "__init__"
    }
    graph = {
        name: {other for other in imports(path) if other in names} - {name} for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph[name]):
                if not (
                    name.startswith(f"{other}.") or other.startswith(f"{name}.")
                ):  # a package and its parts
                    visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_losses_import_torch_and_nothing_else() -> None:
    allowed = {"torch", "typing", "collections", "dataclasses", "__future__", "math", "potstill"}
    for path in (SOURCE / "losses").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in allowed
                if (node.module or "").startswith("potstill"):
                    assert (node.module or "").startswith("potstill.losses")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", sorted((SOURCE / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_have_at_most_twelve_lines(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").split("\nnotes:")[0].splitlines()  # prose for the report apart
    assert 0 < len([line for line in lines if line.strip() and not line.startswith("#")]) <= 12


def test_the_architecture_page_has_these_layers_in_this_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| ([^|]*) \|", page, re.MULTILINE)
    shown = [re.findall(r"`(\w+)`", row) for row in rows]
    public = {name for name in RANK if not name.startswith("_")}
    assert sorted(name for row in shown for name in row) == sorted(public)
    for lower, higher in itertools.pairwise(shown):
        assert max(RANK[name] for name in lower) <= min(RANK[name] for name in higher)


def test_the_public_names_are_these() -> None:
    assert potstill.__all__ == [
        "Batch",
        "Ensemble",
        "Frozen",
        "Objective",
        "Offline",
        "Preprocessing",
        "Result",
        "Share",
        "Signals",
        "Step",
        "Tapped",
        "UserError",
        "__version__",
        "distill",
    ]
    assert all(getattr(potstill, name) is not None for name in potstill.__all__)
    assert losses.__all__ == [
        "activation_boundary",
        "activation_pattern",
        "attention_maps",
        "attention_transfer",
        "batch_channel_correlation",
        "bounded_regression",
        "channel_correlation",
        "channel_distribution",
        "contrastive",
        "correlation_congruence",
        "decoupled_kl",
        "dist",
        "factor_transfer",
        "feature_cosine",
        "feature_mse",
        "fsp",
        "generalized_js",
        "gradient_attention",
        "gram",
        "hard_cross_entropy",
        "hidden_states",
        "image_l1",
        "kl",
        "layer_correlation",
        "logit_mse",
        "minilm_relation",
        "neuron_selectivity",
        "perceptual",
        "probabilistic_transfer",
        "probability_mse",
        "region_hint",
        "response",
        "reverse_kl",
        "rkd_angle",
        "rkd_distance",
        "similarity_preserving",
        "skew_kl",
        "skew_reverse_kl",
        "soft_cross_entropy",
        "teacher_boxes",
        "total_variation",
        "variational_information",
        "weighted_classes",
        "weighted_scores",
    ]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import potstill", ("torch", "numpy", "pydantic", "rich")),
        ("import potstill.cli", ("torch", "numpy", "pydantic")),
        ("import potstill.config", ("torchvision", "timm", "onnx", "datasets", "rich.progress")),
        ("import potstill.run", ("torchvision", "timm", "onnx", "datasets", "tensorboard")),
    ],
)
def test_heavy_libraries_load_where_they_are_used(code: str, absent: tuple[str, ...]) -> None:
    check = f"import sys; {code}; print([name for name in {absent!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_hooks_run_what_ci_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"].removeprefix(".venv/bin/") for repo in hooks["repos"] for hook in repo["hooks"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert entries
    for entry in entries:
        assert f"$(BIN)/{entry}" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_make_installs_once_even_where_the_path_has_a_space(tmp_path: Path) -> None:
    place = tmp_path / "a place"
    (place / ".venv").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, place / name)

    def planned(target: str) -> str:
        command = ["make", "--no-print-directory", "-n", target]
        # This test itself runs under make, whose level and flags would show in what an inner make prints.
        calm = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        made = subprocess.run(command, cwd=place, env=calm, capture_output=True, text=True, check=True)
        return made.stdout

    for target in ("demo", "test"):
        assert "pip install" in planned(target)
    stamp = place / ".venv" / ".installed"
    stamp.touch()
    assert planned("demo").strip() == ".venv/bin/potstill demo"
    assert "pip install" not in planned("test")
    os.utime(stamp, (0, 0))
    assert "pip install" in planned("demo")  # pyproject.toml changed since


def test_make_says_which_python_it_needs(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(["make", "demo", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer: make PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()
