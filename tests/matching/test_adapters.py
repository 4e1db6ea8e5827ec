"""Adapters bring shapes together, and refuse what cannot be compared."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from potstill.errors import UserError
from potstill.matching.adapters import build, kind_of


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        ((2, 16, 8, 8), (2, 64, 8, 8), "1x1 conv 16->64"),
        ((2, 16, 8, 8), (2, 16, 4, 4), "pool 8x8->4x4"),
        ((2, 16, 4, 4), (2, 32, 8, 8), "1x1 conv 16->32, interpolate 4x4->8x8"),
        ((2, 16, 8, 4), (2, 16, 4, 8), "interpolate 8x4->4x8"),
        ((2, 16, 8, 8), (2, 64), "linear 16->64, pool 8x8 away"),
        ((2, 16), (2, 64), "linear 16->64"),
        ((2, 9, 16), (2, 5, 64), "linear 16->64, interpolate 9->5"),
        ((2, 5, 16), (2, 9, 16), "interpolate 5->9"),
    ],
)
def test_shapes_and_words(student: tuple[int, ...], teacher: tuple[int, ...], text: str) -> None:
    adapter = build(student, teacher)
    assert adapter is not None
    assert adapter.describe() == text
    features = torch.randn(3, *student[1:], requires_grad=True)
    adapted = adapter(features)
    assert adapted.shape == (3, *teacher[1:])
    adapted.square().sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_equal_shapes_need_none_whatever_the_batch() -> None:
    assert build((2, 16, 8, 8), (5, 16, 8, 8)) is None


def test_projection_has_no_bias_and_commutes_with_pooling() -> None:
    adapter = build((2, 3, 8, 8), (2, 5, 4, 4))
    assert adapter is not None
    assert [name for name, _ in adapter.named_parameters()] == ["project.weight"]
    features = torch.randn(2, 3, 8, 8)
    assert isinstance(adapter.project, nn.Conv2d)
    torch.testing.assert_close(adapter(features), adaptive_avg_pool2d(adapter.project(features), 4))


def test_interpolation_is_bilinear_on_the_values() -> None:
    adapter = build((2, 3, 4, 4), (2, 3, 8, 8))
    assert adapter is not None
    features = torch.randn(2, 3, 4, 4)
    expected = interpolate(features, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(adapter(features), expected)
    assert not list(adapter.parameters())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 16), (2, 16, 4, 4)),
        ((2, 9, 16), (2, 16)),
        ((2, 16, 4, 4, 4), (2, 8, 4, 4, 4)),
        ((2, 9, 16), (2, 16, 3, 3)),
    ],
)
def test_what_cannot_be_compared_is_refused_with_both_shapes(
    student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        build(student, teacher, where="distill.feature_mse.layers")
    assert str(caught.value).startswith("distill.feature_mse.layers: cannot compare")
    assert str(student) in str(caught.value)
    assert str(teacher) in str(caught.value)


def test_kinds() -> None:
    assert [kind_of((1,) * dims) for dims in (1, 2, 3, 4, 5)] == [
        "other",
        "vector",
        "tokens",
        "maps",
        "other",
    ]
