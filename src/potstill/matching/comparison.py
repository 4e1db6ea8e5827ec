"""How a term's tensors come to its loss: pooled, paired, gathered, with labels where it wants them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill import distributed
from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.matching.detected import HEADED, of_heads, shown_boxes
from potstill.matching.layers import PlannedPair
from potstill.matching.terms import Term

__all__ = ["Eyes", "any_valid", "compare", "mean_over_positions", "total_of"]

Eyes = Callable[[Tensor], Sequence[Tensor]]
"""Maps of some layers of a frozen network, of images ``(N, C, H, W)``."""
Given = Tensor | tuple["Given", ...]
"""What a loss takes from one network: a tensor, or tensors of several layers."""


def compare(
    term: Term,
    pairs: Iterable[PlannedPair],
    student: Signals,
    teacher: Signals,
    batch: Batch,
    matchers: Mapping[str, nn.Module] | None = None,
    eyes: Eyes | None = None,
) -> Tensor:
    """What a term measures in one batch.

    Args:
        term: The term.
        pairs: Its planned pairs of layers; none for a term that compares logits.
        student: What the student answered; adapted taps stand under their adapter's key.
        teacher: What the teacher answered.
        batch: What both answered to.
        matchers: Modules of losses that learn, by the pairs' keys.
        eyes: What sees the images of generators.

    Returns:
        The sum over valid predictions, over several layers their sum or mean as the loss declares; the
        value itself for a loss over a set. 0-d.

    Raises:
        UserError: If the loss cannot compare what the two networks gave, or lacks labels.
    """
    if term.signal in HEADED:
        return of_heads(term, student, teacher).sum()
    if term.signal == "logits":  # a teacher that keeps a graph for another term is a constant here
        answers = student.output, _constant(teacher.output)
        return total_of(*_values(term, term.function, *answers, batch, batch.where))
    if term.signal == "seen":
        assert eyes is not None, "the objective was checked"
        return _of_seen(term, eyes(student.output), eyes(_constant(teacher.output)), batch)
    pairs = list(pairs)
    tokens = batch.tokens("student"), batch.tokens("teacher")
    kept = term.signal == "gradients"  # the only ones that need the teacher's graph
    ours = [_brought(term, student.output, student.taps[pair.key], tokens[0]) for pair in pairs]
    taps = [teacher.taps[pair.teacher] for pair in pairs]
    theirs = [_brought(term, teacher.output, tap if kept else _constant(tap), tokens[1]) for tap in taps]
    values: list[tuple[Tensor, Tensor | None]] = []
    for place, given in enumerate(_spans(term, ours, theirs)):
        key = pairs[place].matcher
        mask = _mask(term, student.taps[pairs[place].key], tokens[0])
        call = _told(matchers[key], batch) if key and matchers is not None else term.function
        if "regions" in term.options:
            call = functools.partial(call, boxes=shown_boxes(term, teacher, batch))
        values.append(_values(term, call, *given, batch, mask))
    total = _total(values)
    return total if term.spec.combine == "sum" else total / len(values)


def _of_seen(term: Term, ours: Sequence[Tensor], theirs: Sequence[Tensor], batch: Batch) -> Tensor:
    """The sum over samples of a loss's mean over the layers of a network that sees both images."""
    where = None if batch.where is None else any_valid(batch.where)
    layers = zip(ours, theirs, strict=True)
    values = [_values(term, term.function, *pair, batch, where) for pair in layers]
    return _total(values) / len(values)


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def _told(matcher: nn.Module, batch: Batch) -> Callable[..., Tensor]:
    """A loss that learns, told which samples it sees; its options are its own."""

    def call(student: Tensor, teacher: Tensor, *, where: Tensor | None, **_options: Any) -> Tensor:
        value: Tensor = matcher(student, teacher, where=where, index=batch.index)
        _remember(matcher, student, teacher, batch.index, where)
        return value

    return call


def _remember(
    matcher: nn.Module, student: Tensor, teacher: Tensor, index: Tensor, where: Tensor | None
) -> None:
    """Show a loss with a memory the samples of all processes, so that each keeps the same memory."""
    remember = getattr(matcher, "remember", None)
    if remember is None or not matcher.training:
        return
    ours, theirs, rows = (distributed.gather(each.detach()) for each in (student, teacher, index))
    remember(ours, theirs, index=rows, where=None if where is None else distributed.gather(where))


def _mask(term: Term, tapped: Tensor, tokens: Tensor | None) -> Tensor | None:
    """What counts: of losses that go by tokens each token, of others whole samples."""
    if tokens is None or term.signal in ("tokens", "attention"):
        return tokens
    by_token = term.signal == "features" and not term.spec.over_set and term.spec.learns is None
    if by_token and tapped.dim() == 3 and tapped.shape[:2] == tokens.shape:
        return tokens
    return any_valid(tokens)


def _brought(term: Term, output: Tensor, tapped: Tensor, tokens: Tensor | None) -> Given:
    """One layer's tensor as the loss wants it; vectors are pooled over the tokens that are there."""
    if term.signal == "gradients":
        return output, tapped
    return mean_over_positions(tapped, tokens) if term.signal == "vectors" else tapped


def mean_over_positions(tensor: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Maps ``(N, C, H, W)`` or tokens ``(N, L, C)`` as vectors ``(N, C)``; vectors stay.

    Args:
        tensor: What a layer gave.
        tokens: Which tokens are there, ``(N, L)``; others do not count.

    >>> mean_over_positions(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[True, False]]))
    tensor([[1.]])
    """
    if tensor.dim() == 3 and tokens is not None and tokens.shape == tensor.shape[:2]:
        there = tokens[:, :, None]
        return tensor.masked_fill(~there, 0.0).sum(dim=1) / there.sum(dim=1).clamp(min=1)
    if tensor.dim() > 2:
        return tensor.mean(dim=1) if tensor.dim() == 3 else tensor.flatten(2).mean(dim=2)
    return tensor


def _spans(term: Term, ours: Sequence[Given], theirs: Sequence[Given]) -> list[tuple[Given, Given]]:
    """What each call of the loss sees of the planned layers."""
    if term.spec.spans == "all":
        return [(tuple(ours), tuple(theirs))]
    if term.spec.spans == "neighbours":
        return list(zip(itertools.pairwise(ours), itertools.pairwise(theirs), strict=True))
    return list(zip(ours, theirs, strict=True))


def _values(
    term: Term,
    function: Callable[..., Tensor],
    student: Given,
    teacher: Given,
    batch: Batch,
    where: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The loss of one span and which values count; a loss over a set sees the batches of all processes."""
    target = [batch.target] if term.spec.target else []
    if term.spec.target and batch.target is None:
        raise UserError(term.where, f"{term.config.loss} needs labels, and this data has none")
    if term.spec.target and batch.target is not None and batch.target.is_floating_point():
        raise UserError(term.where, f"{term.config.loss} needs one label a sample, and these are mixed")
    if term.spec.over_set:
        student, teacher = _gathered(student), _gathered(teacher)
        where = None if where is None else distributed.gather(where)
        target = [None if each is None else distributed.gather(each) for each in target]
    try:
        values = function(student, teacher, *target, where=where, **term.options)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(term.where, str(error)) from error
    if term.spec.over_set:
        return values, None
    return values, where if where is None or where.shape == values.shape else any_valid(where)


def _total(spans: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Sum over spans of :func:`total_of`; in one go where every span has one value a sample."""
    first = spans[0][0]
    if first.dim() <= 1 and all(mask is None and values.shape == first.shape for values, mask in spans):
        return torch.stack([values for values, _ in spans]).sum()
    return torch.stack([total_of(values, mask) for values, mask in spans]).sum()


def _gathered(given: Given) -> Given:
    if isinstance(given, Tensor):
        return distributed.gather(given)
    return tuple(_gathered(each) for each in given)


def any_valid(where: Tensor) -> Tensor:
    """Samples with any valid position, ``(N,)``.

    >>> any_valid(torch.tensor([[True, False], [False, False]]))
    tensor([ True, False])
    """
    return where.reshape(where.shape[0], -1).any(dim=1)


def total_of(values: Tensor, where: Tensor | None) -> Tensor:
    """Sum over the valid predictions; without a mask a sample's positions count as their mean.

    >>> total_of(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), None)
    tensor(8.)
    """
    if where is None:
        return values.flatten(1).mean(dim=1).sum() if values.dim() > 1 else values.sum()
    return values.masked_fill(~where, 0.0).sum()
