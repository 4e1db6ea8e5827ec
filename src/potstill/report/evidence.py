"""From logits to what the report shows: details of the arms, class differences, telling samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.metrics import quality
from potstill.metrics.verdict import compare
from potstill.report.content import ArmDetail, Bin, ClassDifference
from potstill.report.samples import Answer, Guess, Sample

__all__ = ["arm_detail", "class_differences", "telling_samples"]

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]
TOP_CLASSES = 3


def arm_detail(logits: Logits, labels: Labels) -> ArmDetail:
    """Accuracy of each class and reliability of one arm.

    Args:
        logits: ``(S, N, C)``, one slice a seed; the teacher has one.
        labels: ``(N,)``.

    Example:
        >>> arm_detail(np.eye(2)[None] * 9, np.array([0, 1])).class_accuracy
        (1.0, 1.0)
    """
    classes = np.mean([quality.class_accuracy(one, labels) for one in logits], axis=0)
    pooled = quality.softmax(logits).reshape(-1, logits.shape[-1])
    found = quality.calibration(pooled, np.tile(labels, len(logits)))
    bins = tuple(
        Bin(confidence=confidence, accuracy=accuracy, count=count)
        for confidence, accuracy, count in zip(found.confidence, found.accuracy, found.count, strict=True)
        if count
    )
    return ArmDetail(
        class_accuracy=tuple(None if np.isnan(value) else float(value) for value in classes), bins=bins
    )


def class_differences(
    student: Logits, control: Logits, labels: Labels, class_names: Sequence[str]
) -> tuple[ClassDifference, ...]:
    """Student less control for each class with at least two test samples, with its paired interval.

    Args:
        student: ``(S, N, C)``.
        control: The same shape, same seeds.
        labels: ``(N,)``.
        class_names: The ``C`` names.
    """
    first = (student.argmax(axis=-1) == labels).astype(np.float64)
    second = (control.argmax(axis=-1) == labels).astype(np.float64)
    rows = []
    for label, name in enumerate(class_names):
        mine = labels == label
        if mine.sum() < 2:
            continue
        verdict = compare(first[:, mine], second[:, mine])
        rows.append(
            ClassDifference(
                name=name,
                control=float(second[:, mine].mean()),
                student=float(first[:, mine].mean()),
                interval=verdict.interval,
                samples=int(mine.sum()),
            )
        )
    return tuple(rows)


def telling_samples(
    logits: Mapping[str, Logits],
    labels: Labels,
    class_names: Sequence[str],
    *,
    temperature: float,
    shown: Callable[[int], Mapping[str, str]],
) -> tuple[Sample, ...]:
    """A few test samples that show what the teacher's soft answers hold, picked by a fixed rule.

    Of each kind (only the student right, only the control right, all right, all wrong) the ones are taken
    for which the teacher (the student, where there is none) gives its second class the most probability at
    the training temperature, at most one a class.

    Args:
        logits: ``{"teacher": (N, C), "control": (N, C), "student": (N, C)}`` of one seed; teacher and
            control may be absent.
        labels: ``(N,)``.
        class_names: The ``C`` names.
        temperature: The training temperature.
        shown: A test sample as fields of :class:`Sample`: ``image`` or ``text``.
    """
    soft = quality.softmax(logits.get("teacher", logits["student"]), temperature)
    second = np.partition(soft, -2, axis=-1)[:, -2] if soft.shape[-1] > 1 else np.zeros(len(soft))
    order = np.argsort(-second, kind="stable")
    samples = []
    for why, members, wanted in _kinds(logits, labels):
        told: set[int] = set()
        for index in order[members[order]].tolist():
            if len(told) == wanted:
                break
            label = int(labels[index])
            if label in told:
                continue
            told.add(label)
            answers = tuple(
                _answer(arm, values[index], class_names, temperature) for arm, values in logits.items()
            )
            given: Any = shown(index)
            samples.append(Sample(index=index, label=class_names[label], why=why, answers=answers, **given))
    return tuple(samples)


def _kinds(logits: Mapping[str, Logits], labels: Labels) -> list[tuple[str, NDArray[np.bool_], int]]:
    """Kinds of samples: why they are shown, which they are ``(N,)``, and how many to show."""
    right = {arm: values.argmax(axis=-1) == labels for arm, values in logits.items()}
    student = right["student"]
    if "teacher" not in right:
        control = right.get("control", student)
        return [
            ("Student right, control wrong", student & ~control, 3),
            ("Control right, student wrong", ~student & control, 2),
            ("Right", student & control, 2),
            ("Wrong", ~student & ~control, 1),
        ]
    teacher = right["teacher"]
    if "control" not in right:
        return [
            ("Teacher and student right", teacher & student, 4),
            ("Only the teacher right", teacher & ~student, 2),
            ("Both wrong", ~teacher & ~student, 2),
        ]
    control = right["control"]
    return [
        ("Student right, control wrong", teacher & student & ~control, 3),
        ("Control right, student wrong", ~student & control, 2),
        ("All three right", teacher & student & control, 2),
        ("All three wrong", ~teacher & ~student & ~control, 1),
    ]


def _answer(arm: str, logits: Logits, class_names: Sequence[str], temperature: float) -> Answer:
    def top(at: float) -> tuple[Guess, ...]:
        probabilities = quality.softmax(logits, at)
        best = np.argsort(-probabilities, kind="stable")[:TOP_CLASSES]
        return tuple(Guess(name=class_names[i], probability=float(probabilities[i])) for i in best.tolist())

    return Answer(arm=arm, plain=top(1.0), soft=top(temperature) if temperature != 1.0 else ())
