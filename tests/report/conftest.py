"""A finished run with made-up but plausible answers of three networks to a thousand images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.metrics import quality
from potstill.metrics.verdict import compare, mean_interval
from potstill.report.content import History, PairRow, ReportContent, TermRow
from potstill.report.evidence import arm_detail, class_differences, telling_samples
from potstill.report.samples import picture

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ALIKE = {0: 8, 1: 9, 2: 0, 3: 5, 4: 7, 5: 3, 6: 2, 7: 4, 8: 0, 9: 1}
SAMPLES = 1000

RECIPE = """\
task: classification
data: {kind: arrays, path: cifar10}
augment: {flip: 0.5, crop: 4}
teacher: {model: "potstill.models.cifar:resnet56", weights: weights/cifar10_resnet56.safetensors}
student: {model: "potstill.models.cifar:resnet8"}
distill:
  labels: {weight: 0.1}
  kl: {weight: 0.9, temperature: 4}
  attention_transfer: {weight: 1000}
train: {epochs: 8, batch_size: 128, learning_rate: 0.2}
seeds: 3
"""

MakeRun = Callable[..., Path]


def answers(random: np.random.Generator, labels: np.ndarray, skill: float, scale: float) -> np.ndarray:
    """Logits ``(N, 10)``: mostly right, and where not, mostly the class that looks alike."""
    logits = random.normal(size=(len(labels), 10))
    rows = np.arange(len(labels))
    logits[rows, labels] += skill + random.normal(size=len(labels))
    logits[rows, [ALIKE[label] for label in labels.tolist()]] += 1.3
    return (logits * scale).astype(np.float32)


def history(arm: str, seed: int, top: float, random: np.random.Generator) -> History:
    rows = []
    for epoch in range(1, 9):
        share = 1 - np.exp(-epoch / 2.3)
        wobble = random.normal() * 0.014 * (1 - epoch / 9)
        accuracy = 0.25 + (top - 0.25) * share / (1 - np.exp(-8 / 2.3)) + wobble
        rows.append(
            {"epoch": epoch, "step": epoch * 351, "accuracy": accuracy, "loss": 2.4 * (1 - accuracy) ** 0.8}
        )
    return History(arm=arm, seed=seed, rows=tuple(rows))


def sizes(arm: str) -> dict[str, Any]:
    teacher = arm == "teacher"
    one, many = (3.1, 88.0) if teacher else (0.52, 11.4)
    return {
        "parameters": 853_018 if teacher else 78_042,
        "macs": 125_747_840 if teacher else 12_501_632,
        "bytes": 3_435_000 if teacher else 316_000,
        "latency_ms": {
            batch: {"median_ms": value, "low_ms": value * 0.94, "high_ms": value * 1.18, "runs": 50}
            for batch, value in (("1", one), ("64", many))
        },
    }


def arm_result(logits: np.ndarray, teacher: np.ndarray, labels: np.ndarray, arm: str) -> dict[str, Any]:
    per_seed = [quality.accuracy(one, labels) for one in logits]
    row = {
        "accuracy": float(np.mean(per_seed)),
        "interval": list(mean_interval(logits.argmax(-1) == labels)),
        "ece": float(np.mean([quality.calibration(quality.softmax(one), labels).ece for one in logits])),
        **sizes(arm),
    }
    if arm != "teacher":
        row |= {
            "per_seed": per_seed,
            "last": row["accuracy"],
            "best": row["accuracy"] - 0.001,
            "agreement": float(np.mean([quality.agreement(one, teacher) for one in logits])),
            "kl_to_teacher": float(np.mean([quality.kl_to_teacher(one, teacher) for one in logits])),
        }
    return row


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder; the options say which run."""

    def make(folder: Path | None = None, **options: Any) -> Path:
        return write_run(folder or tmp_path / "run", **options)

    return make


def write_run(
    folder: Path,
    *,
    seeds: int = 3,
    control: bool = True,
    skill: float = 0.35,
    names: tuple[str, ...] = NAMES,
    image: Callable[[int], np.ndarray] | None = None,
    labels: np.ndarray | None = None,
    result_changes: dict[str, Any] | None = None,
    **replaced: Any,
) -> Path:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, size=SAMPLES) if labels is None else labels
    teacher = answers(random, labels, 4.6, 2.0)
    logits = {"teacher": teacher[None]}
    for arm, level in (("control", 2.9), ("student", 2.9 + skill)):
        if arm == "student" or control:
            logits[arm] = np.stack([answers(random, labels, level, 2.2) for _ in range(seeds)])
    models = {arm: arm_result(values, teacher, labels, arm) for arm, values in logits.items()}
    result: dict[str, Any] = {
        "task": "classification",
        "metric": "accuracy",
        "higher_is_better": True,
        "seeds": seeds,
        "test_samples": len(labels),
        "models": models,
        "gain": None,
        "interval": None,
        "verdict": None,
        "reason": "no control was trained (--no-control)",
        "selected": "last",
        "seconds": 812.0,
        "samples_per_second": 4210.0,
    }
    if control:
        found = compare(logits["student"].argmax(-1) == labels, logits["control"].argmax(-1) == labels)
        result |= {"gain": found.gain, "interval": list(found.interval)}
        result |= {"verdict": found.verdict, "reason": found.reason}
    pixels = image or (lambda index: random.integers(0, 255, size=(3, 32, 32)).astype(np.uint8))
    content: dict[str, Any] = {
        "title": "resnet8 taught by resnet56 on cifar10",
        "models": {"teacher": "potstill.models.cifar:resnet56", "student": "potstill.models.cifar:resnet8"},
        "setup": (
            "The teacher was trained elsewhere on the 50,000 training images; its weights stay as they are.",
            "Student and control saw 45,000 of them, flipped and cropped at random, the same views in the "
            "same order. 5,000 were held back for validation.",
        ),
        "class_names": names,
        "temperature": 4.0,
        "details": {arm: arm_detail(values, labels) for arm, values in logits.items()},
        "differences": class_differences(logits["student"], logits["control"], labels, names)
        if control
        else (),
        "histories": tuple(
            history(arm, seed, models[arm]["accuracy"], random)
            for arm in logits
            if arm != "teacher"
            for seed in range(seeds)
        ),
        "samples": telling_samples(
            {arm: values[0] for arm, values in logits.items()},
            labels,
            names,
            temperature=4.0,
            shown=lambda index: {"image": picture(pixels(index))},
        ),
        "terms": (
            TermRow(name="labels", loss="cross entropy", weight=0.1),
            TermRow(name="kl", loss="kl", weight=0.9, detail="temperature 4"),
            TermRow(name="attention_transfer", loss="attention_transfer", weight=1000.0),
        ),
        "pairs": tuple(
            PairRow(
                term="attention_transfer",
                student=f"layer{n}",
                teacher=f"layer{n}",
                student_shape=(8 * 2**n, 64 >> n, 64 >> n),
                teacher_shape=(8 * 2**n, 64 >> n, 64 >> n),
                reason=f"stage {n}: last module at {64 >> n} × {64 >> n}",
            )
            for n in (1, 2, 3)
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    ReportContent(**(content | replaced)).save(folder / "report.json")
    (folder / "result.json").write_text(json.dumps(result | (result_changes or {})))
    (folder / "recipe.yaml").write_text(RECIPE)
    lines = [
        {"arm": arm, "seed": seed, "step": step, "epoch": step / 351, "lr": 0.1}
        | {
            name: size * (0.3 + math.exp(-step / 600)) * random.uniform(0.9, 1.1)
            for name, size in parts.items()
        }
        for arm, parts in (("control", {"labels": 1.6}), ("student", {"labels": 1.8, "kl": 3.0}))
        if arm in logits
        for seed in range(seeds)
        for step in range(seed + 1, 2808, 50)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"arm": "stu')
    environment = {
        "potstill": "0.1.0",
        "python": "3.11.9",
        "libraries": {"torch": "2.14.1", "numpy": "2.3.1"},
        "processor": "AMD EPYC 7B13 (AVX2)",
        "threads": 2,
        "precision": "float32",
        "command": "potstill run cifar10-resnet8 --data DIR",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder
