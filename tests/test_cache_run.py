"""Runs with a cached teacher: the same students as without, from a teacher that answers once."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import potstill
from potstill.assembly.load import load_experiment
from potstill.config import load
from potstill.errors import UserError
from potstill.run import run

VIEWS = ["augment.flip=0.5", "distill={kl: {temperature: 2}}", "train.epochs=3"]


def go(tiny: Any, out: Path, *overrides: str, **options: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    result = run(
        tiny.recipe, data=tiny.root, out=out, overrides=[*VIEWS, *overrides], echo=lines.append, **options
    )
    return result, lines


def cached(place: Path, **options: Any) -> str:
    section = ", ".join(f"{key}: {value}" for key, value in {"views": 3, "path": place, **options}.items())
    return f"teacher.cache={{{section}}}"


def student(out: Path) -> dict[str, Tensor]:
    return load_file(out / "student.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = student(one), student(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def curve(out: Path, part: str = "kl") -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["parts"][part] for row in rows if row["arm"] == "student" and "parts" in row]


def test_an_exact_cache_gives_the_same_student_bit_for_bit(tiny: Any, tmp_path: Path) -> None:
    exact, recipe = cached(tmp_path / "cache", fidelity=0), ["augment.mixup=0.4", "augment.crop=1"]
    go(tiny, tmp_path / "live", *recipe, control=False)
    go(tiny, tmp_path / "filling", *recipe, exact, control=False)
    go(tiny, tmp_path / "full", *recipe, exact, control=False)
    assert same(tmp_path / "live", tmp_path / "filling")
    assert same(tmp_path / "live", tmp_path / "full")


def test_layers_are_stored_too(tiny: Any, tmp_path: Path) -> None:
    store, recipe = (
        cached(tmp_path / "cache"),
        ["distill.hint={loss: feature_mse, weight: 1, layers: [conv]}"],
    )
    go(tiny, tmp_path / "live", *recipe, control=False)
    go(tiny, tmp_path / "filling", *recipe, store, control=False)
    go(tiny, tmp_path / "full", *recipe, store, control=False)
    assert same(tmp_path / "filling", tmp_path / "full")
    hints = [curve(tmp_path / name, "hint") for name in ("live", "full")]
    assert hints[1] == pytest.approx(hints[0], rel=1e-3)


def test_a_cached_runs_curve_is_the_live_ones_within_the_error_that_is_stated(
    tiny: Any, tmp_path: Path
) -> None:
    go(tiny, tmp_path / "live", control=False)
    go(tiny, tmp_path / "filling", cached(tmp_path / "cache"), control=False)
    go(tiny, tmp_path / "full", cached(tmp_path / "cache"), control=False)
    assert same(tmp_path / "filling", tmp_path / "full")
    assert not same(tmp_path / "live", tmp_path / "full")
    manifest = json.loads((tmp_path / "cache" / "seed-0" / "manifest.json").read_text())
    kl = manifest["fidelity"]["kl"]["2"]
    assert 0 < kl < 1e-4
    live, full = curve(tmp_path / "live"), curve(tmp_path / "full")
    # Pinsker: probabilities differ by sqrt(2 KL) in all, each counts its log ratio (below 4); T^2 is 4.
    error = 4 * 4 * (2 * kl) ** 0.5
    assert max(abs(one - other) for one, other in zip(live, full, strict=True)) < error
    assert error < 0.05 * max(live)


def test_views_come_again_for_both_arms(tiny: Any, tmp_path: Path) -> None:
    recipe = load(tiny.recipe, [*VIEWS, "augment.crop=2", cached(tmp_path / "cache", views=2)])
    experiment = load_experiment(recipe, [tiny.root])
    loader, prepare = experiment.training(0)
    rows = loader.read(list(range(12)), 0)
    first, second, third = (prepare(*rows, epoch) for epoch in range(3))
    assert not torch.equal(first.input("student"), second.input("student"))
    assert torch.equal(first.input("student"), third.input("student"))
    assert (first.view, second.view, third.view) == (0, 1, 0)


@pytest.fixture
def no_teacher(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, making a teacher fails."""
    import potstill.assembly.materials as materials

    real = materials.build

    def build(config: Any, **options: Any) -> Any:
        assert options["where"] == "student", "the teacher was made"
        return real(config, **options)

    return lambda: monkeypatch.setattr(materials, "build", build)


def test_with_a_full_cache_the_teacher_is_not_loaded(
    tiny: Any, tmp_path: Path, no_teacher: Callable[[], None]
) -> None:
    store = cached(tmp_path / "cache")
    first, lines = go(tiny, tmp_path / "one", store)
    assert any(line.startswith("cache: full; 3 view(s) of 108 samples, 12 bytes a view") for line in lines)
    assert any("top-1 agreement 100.00%" in line for line in lines)
    no_teacher()
    second, _ = go(tiny, tmp_path / "two", store)
    assert same(tmp_path / "one", tmp_path / "two")
    for key in ("accuracy", "parameters", "macs", "bytes", "latency_ms", "ece"):
        assert first.data["models"]["teacher"][key] == second.data["models"]["teacher"][key]
    _, lines = go(tiny, tmp_path / "dry", store, dry=True)
    assert any("its cache is full: it is not loaded" in line for line in lines)
    with pytest.raises(AssertionError, match="the teacher was made"):
        go(tiny, tmp_path / "three", store, "seeds=2")  # another seed has views of its own


def test_nor_is_it_where_terms_look_at_layers(
    tiny: Any, tmp_path: Path, no_teacher: Callable[[], None]
) -> None:
    store = cached(tmp_path / "cache")
    terms = [
        "distill.hint={loss: feature_mse, weight: 0.01, layers: [conv]}",
        "distill.similarity_preserving={}",
    ]
    _, lines = go(tiny, tmp_path / "one", store, *terms)
    assert any("(mean)" in line or "conv" in line for line in lines)
    no_teacher()
    go(tiny, tmp_path / "two", store, *terms)
    assert same(tmp_path / "one", tmp_path / "two")
    _, lines = go(tiny, tmp_path / "dry", store, *terms, dry=True)
    assert any("its cache is full: it is not loaded" in line for line in lines)
    with pytest.raises(AssertionError, match="the teacher was made"):
        go(tiny, tmp_path / "three", store)  # without the layers the answers are another cache


def test_it_can_be_filled_beforehand_and_more_views_later(tiny: Any, tmp_path: Path) -> None:
    _, lines = go(tiny, tmp_path / "none", cached(tmp_path / "cache", views=1), "seeds=2", only="cache")
    assert not (tmp_path / "none").exists()
    assert [line.split(";")[0] for line in lines if "full" in line] == ["cache: full"] * 2
    _, lines = go(tiny, tmp_path / "none", cached(tmp_path / "cache"), dry=True)
    assert any(line.startswith("cache: 33.3% filled; 3 view(s) of 108 samples") for line in lines)
    _, lines = go(tiny, tmp_path / "run", cached(tmp_path / "cache", fill="before"))
    assert [line for line in lines if "is filled" in line] == [
        f"cache: seed 0, view {view} of 3 is filled" for view in (2, 3)
    ]
    with pytest.raises(UserError, match=r"teacher\.cache: missing"):
        go(tiny, tmp_path / "none", only="cache")
    with pytest.raises(UserError, match="--only: expected cache"):
        go(tiny, tmp_path / "none", only="student")


def test_a_plan_foresees_the_size_and_writes_nothing(tiny: Any, tmp_path: Path) -> None:
    _, lines = go(tiny, tmp_path / "run", cached(tmp_path / "cache"), dry=True)
    line = next(line for line in lines if line.startswith("cache: "))
    assert re.search(
        r"empty yet; 3 view\(s\) of 108 samples, 12 bytes a view .*mean KL .* at temperature 2", line
    )
    assert not (tmp_path / "cache").exists()


def test_without_augmentation_one_view_serves_all_epochs_and_seeds(tiny: Any, tmp_path: Path) -> None:
    go(tiny, tmp_path / "run", cached(tmp_path / "cache"), "augment.flip=0", "seeds=2", control=False)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["all-seeds"]
    assert len(list((tmp_path / "cache" / "all-seeds").glob("*.bin"))) == 1


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("augment.flip=0.25", "augmentation"),
        ("data.limit=90", "data"),
        ("teacher.mean=[0.25]", "preprocessing"),
        ("train.precision=bf16", "precision"),
    ],
)
def test_a_cache_of_another_set_up_is_refused(tiny: Any, tmp_path: Path, setting: str, what: str) -> None:
    go(tiny, tmp_path / "one", cached(tmp_path / "cache"), "train.steps=1", only="cache")
    digests = r"\(fingerprints [0-9a-f]{16} and [0-9a-f]{16}\)"
    with pytest.raises(UserError, match=rf"teacher\.cache\.path: .*another {what}: .*{digests}"):
        go(tiny, tmp_path / "two", cached(tmp_path / "cache"), setting)


def test_a_cache_of_other_weights_is_refused(tiny: Any, tmp_path: Path) -> None:
    go(tiny, tmp_path / "one", cached(tmp_path / "cache"), only="cache")
    content = bytearray(tiny.teacher.read_bytes())
    content[-1] ^= 1
    tiny.teacher.write_bytes(content)
    with pytest.raises(UserError, match="another weights"):
        go(tiny, tmp_path / "two", cached(tmp_path / "cache"))


KILLED = """
import os, signal, sys
from pathlib import Path
from potstill.cache.store import Store, _File
from potstill.run import run
recipe, out, left, *overrides = sys.argv[1:]
left, write = int(left), os.write

def torn(handle, block):
    global left
    left -= 1
    if left == 0:
        write(handle, block[: len(block) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(handle, block)

os.write = torn
run(recipe, data=Path(recipe).parent, out=Path(out), overrides=overrides, resume=True, control=False,
    echo=lambda line: None)
"""


def test_killed_in_the_middle_of_a_record_it_goes_on_to_the_same_student(tiny: Any, tmp_path: Path) -> None:
    def start(left: int, settings: Sequence[str], name: str) -> int:
        command = [sys.executable, "-c", KILLED, str(tiny.recipe), str(tmp_path / name), str(left), *settings]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    settings = [*VIEWS, cached(tmp_path / "cache"), "train.checkpoint_every=2"]
    for left in (20, 70):
        assert start(left, settings, "killed") == -signal.SIGKILL
    assert start(-1, settings, "killed") == 0
    go(tiny, tmp_path / "whole", cached(tmp_path / "other"), "train.checkpoint_every=2", control=False)
    assert same(tmp_path / "killed", tmp_path / "whole")


def test_two_processes_fill_it_together(tiny: Any, tmp_path: Path) -> None:
    recipe = [str(tiny.recipe), "--data", str(tiny.root), *(f"--set={each}" for each in VIEWS)]
    settings = ["--only", "cache", f"--set={cached(tmp_path / 'both', fidelity=0)}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "potstill"]
    done = subprocess.run([*command, "run", *recipe, *settings], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cache: full; 3 view(s)") == 1
    go(tiny, tmp_path / "one", cached(tmp_path / "one", fidelity=0), only="cache")
    files = [sorted((tmp_path / name / "seed-0").glob("*.bin")) for name in ("both", "one")]
    assert len(files[0]) == 3
    for both, one in zip(*files, strict=True):
        answers = [
            np.frombuffer(path.read_bytes(), np.uint8).reshape(108, -1)[:, :12].copy().view("<f4")
            for path in (both, one)
        ]
        np.testing.assert_allclose(*answers, rtol=1e-5, atol=1e-5)


def test_a_comparison_asks_once_for_all_methods(tiny: Any, tmp_path: Path) -> None:
    from potstill.compare import compare_methods

    settings = [*(each for each in VIEWS if "distill" not in each), cached(tmp_path / "cache")]
    found = compare_methods(
        tiny.recipe, "kl,logit_mse", data=tiny.root, out=tmp_path / "out", overrides=settings, seeds=1
    )
    assert not found.failed
    assert len(list((tmp_path / "cache" / "seed-0").glob("*.bin"))) == 3


# What cannot be cached -----------------------------------------------------------------------------


class Restless(Dataset[Any]):
    """Draws at random whenever it is asked."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 4, 4), index % 2


def distill(train: Dataset[Any], out: Path, **options: Any) -> Any:
    def net() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))

    teacher = net()
    with torch.no_grad():
        teacher[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))  # type: ignore[index]
        teacher[1].bias.copy_(torch.tensor([8.0, -8.0]))  # type: ignore[index]
    settings = {"epochs": 2, "batch_size": 8, "out": out, "echo": lambda line: None, "control": False}
    return potstill.distill(net, teacher, train=train, **{**settings, **options})


def test_a_network_in_memory_has_a_cache_too(tmp_path: Path) -> None:
    images, labels = torch.randn(60, 1, 4, 4), torch.arange(60) % 2
    images[labels == 1] += 1.0
    data = TensorDataset(images, labels)
    place = {"views": 2, "path": str(tmp_path / "cache")}
    distill(data, tmp_path / "one", cache=place)
    distill(data, tmp_path / "two", cache=place)
    assert same(tmp_path / "one", tmp_path / "two")
    with pytest.raises(UserError, match="another data"):
        distill(TensorDataset(images + 1, labels), tmp_path / "three", cache=place)


def test_samples_that_are_drawn_anew_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="random changes in the data set's own code"):
        distill(Restless(), tmp_path / "run", cache={"path": str(tmp_path / "cache")})


def test_a_stream_is_refused_with_the_reason(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(UserError, match="a stream has no sample numbers"):
        distill(Stream(), tmp_path / "run", cache={"path": str(tmp_path / "cache")})


def test_settings_that_make_no_sense_are_refused(tiny: Any) -> None:
    def settings(*overrides: str) -> None:
        load(tiny.recipe, overrides)

    with pytest.raises(UserError, match=r"teacher\.cache\.views: must be >= 1, got 0"):
        settings("teacher.cache.views=0")
    with pytest.raises(UserError, match=r"teacher\.cache\.fill: expected one of online, before, got 'never'"):
        settings("teacher.cache.fill=never")
    with pytest.raises(UserError, match=r"student\.cache: unknown key"):
        settings("student.cache={}")
    with pytest.raises(UserError, match=r"teacher\.cache\.top: .*distill\.logit_mse compares the logits"):
        settings("teacher.cache.top=2", "distill={logit_mse: {}}")
    assert load(tiny.recipe, ["teacher.cache=4"]).teacher.cache.views == 4  # type: ignore[union-attr]
