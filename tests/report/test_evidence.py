"""From logits to what the page shows."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from potstill.metrics import quality
from potstill.metrics.verdict import compare
from potstill.report.evidence import arm_detail, class_differences, telling_samples
from potstill.report.samples import picture

NAMES = ("cat", "dog", "frog")


def logits_for(answers: list[int], doubt: list[float]) -> np.ndarray:
    """Logits whose greatest entry is the answer, and whose second stands ``doubt`` below it."""
    rows = np.full((len(answers), 3), -9.0, dtype=np.float32)
    for row, (answer, less) in enumerate(zip(answers, doubt, strict=True)):
        rows[row, answer] = 5.0
        rows[row, (answer + 1) % 3] = 5.0 - less
    return rows


def test_detail_averages_over_seeds() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(2, 60, 3)).astype(np.float32), random.integers(0, 3, size=60)
    detail = arm_detail(logits, labels)
    for number in range(3):
        mine = labels == number
        expected = (logits[:, mine].argmax(-1) == number).mean()
        assert detail.class_accuracy[number] == pytest.approx(expected)
    assert sum(one.count for one in detail.bins) == 120
    pooled = quality.calibration(quality.softmax(logits.reshape(120, 3)), np.concatenate([labels, labels]))
    error = sum(one.count / 120 * abs(one.accuracy - one.confidence) for one in detail.bins)
    assert error == pytest.approx(pooled.ece)


def test_a_class_without_samples_is_none() -> None:
    detail = arm_detail(np.eye(3)[None, :2], np.array([0, 1]))
    assert detail.class_accuracy == (1.0, 1.0, None)


def test_class_differences_are_the_verdict_of_each_class() -> None:
    random = np.random.default_rng(0)
    labels = np.array([0] * 40 + [1] * 40 + [2])
    student, control = (random.normal(size=(2, 81, 3)).astype(np.float32) for _ in range(2))
    student[:, :40, 0] += 2
    rows = class_differences(student, control, labels, NAMES)
    assert [row.name for row in rows] == ["cat", "dog"]
    mine = labels == 0
    expected = compare(student[:, mine].argmax(-1) == 0, control[:, mine].argmax(-1) == 0)
    assert rows[0].student - rows[0].control == pytest.approx(expected.gain)
    assert rows[0].interval == pytest.approx(expected.interval)
    assert rows[0].samples == 40


def test_telling_samples_follow_their_rule() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    logits = {
        "teacher": logits_for([0, 0, 1, 1, 0], [3.0, 0.1, 1.0, 2.0, 1.0]),
        "control": logits_for([1, 1, 1, 1, 0], [1.0] * 5),
        "student": logits_for([0, 0, 2, 1, 1], [1.0] * 5),
    }
    drawn: list[int] = []

    def image(index: int) -> dict[str, str]:
        drawn.append(index)
        return {"image": picture(np.full((3, 8, 8), index, dtype=np.uint8))}

    samples = telling_samples(logits, labels, NAMES, temperature=4.0, shown=image)
    # Of the two cats that only the student gets right, the teacher doubts the second more; one a class.
    assert [(sample.index, sample.label) for sample in samples] == [
        (1, "cat"),
        (2, "dog"),
        (3, "dog"),
        (4, "frog"),
    ]
    assert drawn == [1, 2, 3, 4]
    assert [sample.why.split(",")[0] for sample in samples] == [
        "Student right",
        "Control right",
        "All three right",
        "All three wrong",
    ]
    teacher = samples[0].answers[0]
    assert teacher.plain[0].name == "cat"
    expected = quality.softmax(logits["teacher"][1], 4.0)
    assert [guess.probability for guess in teacher.soft] == pytest.approx(sorted(expected, reverse=True))
    assert teacher.soft[0].probability < teacher.plain[0].probability


def test_at_temperature_one_nothing_is_softened() -> None:
    logits = {arm: logits_for([0, 1, 2], [1.0] * 3) for arm in ("teacher", "student")}
    samples = telling_samples(
        logits, np.arange(3), NAMES, temperature=1.0, shown=lambda index: {"text": f"sample {index}"}
    )
    assert samples
    assert all(answer.soft == () for sample in samples for answer in sample.answers)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_picture_keeps_pixels_and_shrinks_big_images(channels: int) -> None:
    image = np.arange(channels * 64, dtype=np.uint8).reshape(channels, 8, 8)
    opened = Image.open(io.BytesIO(base64.b64decode(picture(image).partition(",")[2])))
    pixels = np.asarray(opened)
    assert np.array_equal(pixels, image.transpose(1, 2, 0) if channels == 3 else image[0])
    big = picture(np.zeros((3, 600, 300), dtype=np.uint8))
    assert Image.open(io.BytesIO(base64.b64decode(big.partition(",")[2]))).size == (64, 128)


def test_picture_stretches_floats_and_refuses_vectors() -> None:
    image = np.array([[[-1.0, 3.0]]])
    opened = Image.open(io.BytesIO(base64.b64decode(picture(image).partition(",")[2])))
    assert np.asarray(opened).tolist() == [[0, 255]]
    with pytest.raises(ValueError, match="expected an image"):
        picture(np.zeros(3))
