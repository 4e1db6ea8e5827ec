"""What a reader of a result must not miss."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.results.summary import warnings_of


def result(**perplexity: float) -> dict[str, Any]:
    models = {arm: {"perplexity": value} for arm, value in perplexity.items()}
    return {"models": models, "metric": "perplexity", "higher_is_better": False, "seeds": 2}


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (
            {"teacher": 9.0, "control": 8.0, "student": 7.0},
            "the teacher (9.00) is worse than the control (8.00)",
        ),
        (
            {"teacher": 9.0, "student": 7.0},
            "the teacher (9.00) is worse than the student (7.00), and without",
        ),
    ],
)
def test_a_teacher_that_is_worse_is_told_with_both_numbers(models: dict[str, float], said: str) -> None:
    (warning,) = warnings_of(result(**models))
    assert warning.startswith(said)


@pytest.mark.parametrize(
    "models", [{"teacher": 7.5, "control": 8.0, "student": 7.0}, {"teacher": 7.0, "student": 7.0}]
)
def test_a_teacher_that_is_no_worse_is_not(models: dict[str, float]) -> None:
    assert warnings_of(result(**models)) == []
