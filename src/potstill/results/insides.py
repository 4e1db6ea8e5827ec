"""How alike the insides of a student and its teacher are, layer by layer: hidden states and attention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.batch import Batch, Inputs
from potstill.data.texts import TextSet
from potstill.data.tokens import TokenSet
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.matching.landmarks import attention, blocks
from potstill.matching.recording import record
from potstill.matching.taps import Tapped
from potstill.models.pretrained import show_attention
from potstill.results.outcome import Outcome

__all__ = ["Alike", "alignments", "insides", "looked_into", "same_places"]

TOKENS, TEXTS = 512, 24
Alike = dict[str, list[list[float]]]
"""``hidden`` and ``attention``: a row a layer of the student, a column a layer of the teacher."""


def insides(experiment: Experiment, outcome: Outcome) -> dict[str, Alike]:
    """How alike each arm's layers are to the teacher's on some of the test part, by arm.

    ``hidden`` holds the :func:`alignments` of the hidden states of tokens, ``attention`` the share of
    attention in :func:`same_places`, heads averaged; it is left out where a network has none to see. Empty
    for other tasks than texts, where the teacher stays unloaded, and where networks cut texts differently.
    """
    part, teacher = experiment.splits.test, None if experiment.known is not None else experiment.teacher
    if teacher is None or not isinstance(part, TokenSet | TextSet):
        return {}
    batch = experiment.task.plain_batch(*part.__getitems__(_rows(part)))
    if "teacher" in batch.inputs and not _same(batch.input("teacher"), batch.input("student")):
        return {}
    which, found = experiment.recipe.train.select, {}
    theirs = looked_into(teacher, batch)
    for arm, one in outcome.arms.items():
        network = one.cells[0].load(experiment.blank(arm), which).to(experiment.device)
        ours = looked_into(network, batch)
        found[arm] = {
            name: measure(ours[name], theirs[name])
            for name, measure in (("hidden", alignments), ("attention", same_places))
            if ours[name] and theirs[name]
        }
    return {arm: alike for arm, alike in found.items() if alike}


def _rows(part: TokenSet | TextSet) -> list[int]:
    """Rows spread over the part."""
    count = max(1, TOKENS // part.length) if isinstance(part, TokenSet) else TEXTS
    rows: list[int] = np.unique(np.linspace(0, len(part) - 1, count).astype(int)).tolist()
    return rows


def _same(one: Inputs, other: Inputs) -> bool:
    assert isinstance(one, Mapping), "texts are tokens by name"
    assert isinstance(other, Mapping), "texts are tokens by name"
    return torch.equal(one["input_ids"], other["input_ids"])


@torch.no_grad()
def looked_into(network: nn.Module, batch: Batch) -> dict[str, list[Tensor]]:
    """What each layer of a network gives to the T tokens that count.

    Args:
        network: A network of texts; its mode and its attention are afterwards as before.
        batch: What it sees, in the role of the student.

    Returns:
        ``hidden`` states ``(T, C)`` and ``attention`` ``(T, L)``, heads averaged, of each layer in order.
    """
    inputs, where = batch.input("student"), batch.tokens("student")
    assert isinstance(inputs, Mapping), "texts are tokens by name"
    assert where is not None, "and some count"
    with _attention_seen(network):
        layers = record(network, {name: tensor[:2] for name, tensor in inputs.items()})
        hidden, heads = [each.path for each in blocks(layers)], []
        with contextlib.suppress(UserError):  # a network without any
            heads = [each.path for each in attention(layers, "network", "")]
        training = network.training
        tapped = Tapped(network.eval(), [*hidden, *heads])
        taps = tapped(inputs).taps
        tapped.remove()
        network.train(training)
    return {
        "hidden": [taps[path][where].float() for path in hidden],
        "attention": [taps[path].float().mean(dim=1)[where] for path in heads],
    }


@contextlib.contextmanager
def _attention_seen(network: nn.Module) -> Iterator[None]:
    """Attention is computed so that it can be seen, and afterwards as before."""
    config: Any = getattr(network, "config", None)
    before = getattr(config, "_attn_implementation", None)
    changed = show_attention(network)
    try:
        yield
    finally:
        if changed:
            switch: Any = network
            switch.set_attn_implementation(before)


def alignments(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[list[float]]:
    """Linear centred kernel alignment of every two layers, each kernel's estimate without bias.

    No rotation or scale of a layer changes it, and widths may differ. It is 0 in the mean for layers that
    have nothing to do with each other, however few tokens there are, so it may lie below 0.

    Formula:
        HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K = X X^T and L = Y Y^T with empty diagonals,
        HSIC(K, L) = (tr KL + (1'K1)(1'L1) / ((n-1)(n-2)) - 2 / (n-2) 1'KL1) / (n (n-3))

    Args:
        ours: Hidden states of n tokens in the layers of a network, ``(n, C)`` each; at least 4 tokens.
        theirs: The same tokens in another network, ``(n, C')`` each.

    Returns:
        A row a layer of ours, a column a layer of theirs; 0 for a layer that is the same for all tokens.

    Reference:
        Nguyen, Raghu, Kornblith, "Do Wide and Deep Networks Learn the Same Things?", 2021,
        https://arxiv.org/abs/2010.15327

    >>> some = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    >>> [[round(each, 4) for each in row] for row in alignments([some], [2 * some.flip(1), 0 * some])]
    [[1.0, 0.0]]
    """
    counts = {len(each) for each in (*ours, *theirs)}
    if len(counts) > 1 or min(counts, default=4) < 4:
        raise ValueError(f"expected the same tokens in all layers, 4 or more, got {sorted(counts)}")
    rows, columns = ([_kernel(each) for each in layers] for layers in (ours, theirs))
    sizes, others = ([_dependence(each, each) ** 0.5 for each in kernels] for kernels in (rows, columns))
    return [
        [
            _dependence(row, column) / (size * other) if size * other else 0.0
            for column, other in zip(columns, others, strict=True)
        ]
        for row, size in zip(rows, sizes, strict=True)
    ]


def _kernel(values: Tensor) -> Tensor:
    """``(n, n)`` float64, without diagonal; centred first, which changes nothing but rounding."""
    wide = values.double()
    centred = wide - wide.mean(dim=0)
    return (centred @ centred.T).fill_diagonal_(0)


def _dependence(first: Tensor, second: Tensor) -> float:
    """HSIC of two kernels ``(n, n)`` without diagonal, but for its factor 1 / (n (n-3))."""
    count = len(first)
    rows = first.sum(dim=0), second.sum(dim=0)
    product = rows[0].sum() * rows[1].sum() / ((count - 1) * (count - 2))
    found = (first * second).sum() + product - 2 / (count - 2) * (rows[0] @ rows[1])
    return float(found)


def same_places(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[list[float]]:
    """Share of attention that every two layers give to the same tokens, 0 to 1: 1 less the total variation.

    Args:
        ours: Attention of n tokens to all others in the layers of a network, ``(n, L)`` each.
        theirs: The same in another network.

    Returns:
        A row a layer of ours, a column a layer of theirs.

    >>> same_places([torch.tensor([[0.5, 0.5]])], [torch.tensor([[0.25, 0.75]])])
    [[0.75]]
    """
    return [[float(torch.minimum(one, other).sum(dim=-1).mean()) for other in theirs] for one in ours]
