"""``potstill.distill``: modules and data sets in memory, the same run as the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import potstill
from potstill.models import fingerprint


def images(count: int, *, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = torch.randn(count, 1, 6, 6, generator=generator)
    pixels[labels == 1, :, :, 3:] += 1.5
    return TensorDataset(pixels, labels)


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * width, 2))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    model = network(8)
    data = images(200, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
        optimizer.step()
    return model


def distil(teacher: nn.Module, out: Path, student: Any = None, **options: Any) -> potstill.Result:
    settings = {"epochs": 2, "batch_size": 20, "learning_rate": 0.05, "echo": lambda line: None, **options}
    made = student if student is not None else (lambda: network(2))
    parts = {"train": images(100, seed=2), "validation": images(40, seed=3), "test": images(60, seed=4)}
    return potstill.distill(made, teacher, **{**parts, **settings}, out=out)


def test_it_returns_the_result_and_writes_the_run_folder(teacher: nn.Module, tmp_path: Path) -> None:
    before = fingerprint(teacher)
    result = distil(teacher, tmp_path / "run", distill={"kl": {"weight": 0.9, "temperature": 4}}, seeds=2)
    assert result.verdict in ("better", "same", "worse")
    assert result.gain is not None
    assert result.student is not None
    assert result.student(torch.zeros(3, 1, 6, 6)).shape == (3, 2)
    assert result.report.is_file()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["seeds"] == 2
    assert fingerprint(teacher) == before
    assert teacher.training


def test_a_module_is_the_start_of_every_seed_and_is_not_changed(teacher: nn.Module, tmp_path: Path) -> None:
    student = network(2)
    before = fingerprint(student)
    result = distil(teacher, tmp_path / "run", student, seeds=2)
    assert fingerprint(student) == before
    assert result.student is not None
    assert fingerprint(result.student) != before
    assert "only the data order differs" in (tmp_path / "run" / "report.html").read_text()


def test_it_resumes_like_the_command(teacher: nn.Module, tmp_path: Path) -> None:
    first = distil(teacher, tmp_path / "run")
    second = distil(teacher, tmp_path / "run", resume=True)
    assert second.data == first.data
    assert second.student is not None
    with pytest.raises(potstill.UserError, match="belongs to a run already"):
        distil(teacher, tmp_path / "run")


def test_without_a_test_set_one_is_cut(teacher: nn.Module, tmp_path: Path) -> None:
    lines: list[str] = []
    distil(teacher, tmp_path / "run", validation=None, test=None, echo=lines.append)
    assert any("no test part" in line for line in lines)


def test_features_are_matched_in_memory_too(teacher: nn.Module, tmp_path: Path) -> None:
    terms = {
        "kl": {},
        "attention_transfer": {"layers": ["0"]},
        "hint": {"loss": "feature_mse", "layers": ["0"]},
    }
    result = distil(teacher, tmp_path / "run", distill=terms, learning_rate=1e-3)
    assert "1x1 conv 2-&gt;8" in result.report.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": "text"}, "student: expected a torch.nn.Module or a function, got str"),
        ({"student": lambda: 3}, "student: expected a function that makes a torch.nn.Module, got int"),
        ({"distill": {"kll": {}}}, "distill.kll: unknown loss; did you mean 'kl'"),
        ({"learning_rat": 1}, "train.learning_rat: unknown key; did you mean 'learning_rate'"),
        ({"batch_size": 500}, "train.batch_size: must be at most the 100 training samples, got 500"),
        ({"preprocessing": {}}, "preprocessing.student: missing"),
    ],
)
def test_mistakes(teacher: nn.Module, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(potstill.UserError) as caught:
        distil(teacher, tmp_path / "run", **options)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()
