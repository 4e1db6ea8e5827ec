"""ROUGE-L against the textbook's table, and golden numbers."""

from __future__ import annotations

import functools
import random

import pytest

from potstill.metrics.rouge import common_length, rouge_l


def slowly(one: str, other: str) -> int:
    @functools.cache
    def longest(left: int, right: int) -> int:
        if left == len(one) or right == len(other):
            return 0
        if one[left] == other[right]:
            return 1 + longest(left + 1, right + 1)
        return max(longest(left + 1, right), longest(left, right + 1))

    return longest(0, 0)


def test_the_longest_common_subsequence_is_the_tables() -> None:
    draw = random.Random(0)
    for _ in range(200):
        one, other = ("".join(draw.choices("abcd", k=draw.randrange(90))) for _ in range(2))
        assert common_length(one, other) == slowly(one, other)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),  # the paper's example
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("Same, same!", "same same", 1.0),
        ("", "", 1.0),
        ("", "something", 0.0),
        ("été à la mer", "Été à  la montagne", 0.75),
    ],
)
def test_golden_numbers(text: str, reference: str, expected: float) -> None:
    assert rouge_l(text, reference) == pytest.approx(expected)
    assert rouge_l(reference, text) == rouge_l(text, reference)
