"""What README and docs tell a reader to type works as they tell it, with fewer images and steps."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from potstill import losses, methods
from potstill.cli import app
from potstill.config import from_mapping, load, shipped_recipes

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = [
    "--set",
    "data.limit=96",
    "--set",
    "data.validation=64",
    "--set",
    "train.steps=2",
    "--set",
    "seeds=1",
]
SMALL += ["--set", "train.batch_size=32", "--set", "train.precision=float32"]


def blocks(language: str) -> list[tuple[str, str]]:
    """Every fenced block of a language, with the name of its page."""
    pattern = re.compile(rf"^( *)```{language}\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    found = []
    for page in PAGES:
        for indent, text in pattern.findall(page.read_text(encoding="utf-8")):
            lines = [line.removeprefix(indent) for line in text.splitlines()]
            found.append((page.name, "\n".join(lines)))
    return found


def anchors(page: Path) -> set[str]:
    """What a link into the page may name: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[str]:
    """Every documented ``potstill ...`` line, without its comment."""
    lines = [
        line.strip().split("  #")[0].split(" # ")[0]
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("    potstill ")
    ]
    return sorted({shlex.join(shlex.split(line)) for line in lines})


def test_the_page_of_methods_is_up_to_date() -> None:
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == methods.markdown()


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("http"):
                continue
            name, _, anchor = target.partition("#")
            other = page.parent / name if name else page
            assert other.is_file(), f"{page.name}: {target}"
            assert other.stat().st_size > 0, f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(other), f"{page.name}: {target}"


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_blocks_run(page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {"__name__": "documentation"})


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_recipes_in_the_docs_are_valid(page: str, text: str) -> None:
    del page
    raw = yaml.safe_load(text)
    if set(raw) in ({"distill"}, {"augment"}):
        other = {"model": "a:b", "weights": "w"}
        raw = {"data": {"path": "x"}, "teacher": other, "student": other, **raw}
    else:
        assert len([line for line in text.splitlines() if line.strip()]) <= 12
    from_mapping(raw)


def test_your_own_network_and_data_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for language, name in (("python", "mine.py"), ("yaml", "mine.yaml")):
        (text,) = [text for _, text in blocks(language) if text.startswith(f"# {name}\n")]
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POTSTILL_DATA", raising=False)
    subprocess.run([sys.executable, "mine.py"], check=True)
    dry = CliRunner().invoke(app, ["run", "mine.yaml", "--dry"])
    assert dry.exit_code == 0, dry.output
    done = CliRunner().invoke(app, ["run", "mine.yaml"])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert result["models"]["teacher"]["accuracy"] > 0.85
    assert result["models"]["student"]["accuracy"] > 0.75


def test_the_readme_shows_the_shipped_recipe() -> None:
    shown = [from_mapping(yaml.safe_load(text)) for page, text in blocks("yaml") if page == "README.md"]
    assert shown == [load("cifar10-resnet8")]


def test_the_readme_counts_what_can_be_matched() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"**{len(losses.__all__)} things to match**" in readme


def test_the_readmes_two_commands_are_makes_targets() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target, what in (("demo", "potstill demo"), ("test", "pytest")):
        assert f"make {target} " in readme
        planned = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
        assert what in planned.stdout


@pytest.fixture(scope="module")
def place(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the documented recipe, some of the real images, and the real weights."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "data" / "cifar10").mkdir(parents=True)
    (folder / "data" / "weights").symlink_to(data_root / "weights")
    for part, count in (("train", 400), ("test", 100)):
        for kind in ("images", "labels"):
            name = f"cifar10/{part}_{kind}.npy"
            np.save(folder / "data" / name, np.load(data_root / name, mmap_mode="r")[:count])
    text = next(text for page, text in blocks("yaml") if page == "usage.md")
    (folder / "recipe.yaml").write_text(text)
    return folder


def test_documented_commands_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    said = commands()
    assert {line.split()[1] for line in said} >= {"run", "measure", "export", "report", "methods"}
    # Long ones, and one whose weights lie in a package, are loaded by test_config; some are planned below.
    long = (
        "resnet20",
        "born-again",
        "mutual",
        "early-exit",
        "sst2",
        "prune",
        "smollm2",
        "shakespeare",
        "bccd",
    )
    runs = [line for line in said if line.split()[1] == "run" and not any(name in line for name in long)]
    rest = [line for line in said if line.split()[1] not in ("run", "compare")]
    folder = None
    for number, line in enumerate([*runs, *rest]):
        words = shlex.split(line.replace("DIR", shlex.quote(str(place / "data"))))[1:]
        if words[0] == "run" and "--list" not in words:
            words += SMALL + ([] if "--out" in words or "--dry" in words else ["--out", f"runs/{number}"])
        elif "RUN" in words:
            assert folder is not None
            words = [str(folder) if word == "RUN" else word for word in words]
        words = ["kl" if word == "NAME" else word for word in words]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{line}: {done.output}"
        if words[0] == "run" and "--out" in words:
            folder = place / words[words.index("--out") + 1]
            assert (folder / "report.html").is_file()


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name.startswith("cifar10")])
def test_shipped_recipes_load_their_data_and_networks(place: Path, name: str) -> None:
    words = ["run", name, "--data", str(place / "data"), "--dry", *SMALL]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "estimate:" in done.output
