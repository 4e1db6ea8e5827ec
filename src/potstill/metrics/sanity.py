"""Is this teacher worth listening to? Checked on validation data before any training starts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from potstill.errors import UserError
from potstill.metrics.quality import best_permutation_accuracy

__all__ = ["check_teacher"]

FAR_HIGHER = 0.25


def check_teacher(
    logits: NDArray[np.float32], labels: NDArray[np.int64], class_names: tuple[str, ...]
) -> float:
    """Accuracy of the teacher, if it is one.

    Args:
        logits: ``(N, C)`` answers on validation samples.
        labels: ``(N,)`` their labels.
        class_names: The ``C`` names in the order of the labels.

    Returns:
        Accuracy, a fraction.

    Raises:
        UserError: If the logits are not finite, if another order of the classes fits the labels far
            better (the teacher was trained with another class order), or if it is no better than chance.
    """
    if not np.isfinite(logits).all():
        rows = int((~np.isfinite(logits)).any(axis=1).sum())
        raise UserError(
            "teacher", f"expected finite logits, got NaN or infinity for {rows} of {len(logits)} samples"
        )
    predicted = logits.argmax(axis=1)
    accuracy = float((predicted == labels).mean())
    num_classes = len(class_names)
    permuted = best_permutation_accuracy(predicted, labels, num_classes)
    if permuted > accuracy + FAR_HIGHER and permuted > 2 * accuracy:
        example = _moved(predicted, labels, class_names)
        raise UserError(
            "teacher",
            f"its class order contradicts the data: accuracy {accuracy:.1%} on validation, but "
            f"{permuted:.1%} with its classes in another order ({example}); give both the same order",
        )
    chance = 1.0 / num_classes
    if accuracy <= chance + 1.0 / len(labels):
        raise UserError(
            "teacher",
            f"expected better than chance ({chance:.1%}), got accuracy {accuracy:.1%} on {len(labels)} "
            "validation samples; check its weights, its mean and std, and its classes",
        )
    return accuracy


def _moved(predicted: NDArray[np.int64], labels: NDArray[np.int64], class_names: tuple[str, ...]) -> str:
    """The first class that the teacher consistently calls by another name."""
    for label, name in enumerate(class_names):
        answers = predicted[labels == label]
        if len(answers):
            answer = int(np.bincount(answers, minlength=len(class_names)).argmax())
            if answer != label:
                return f"it answers {class_names[answer]!r} where the data says {name!r}"
    return "no single class stands out"
