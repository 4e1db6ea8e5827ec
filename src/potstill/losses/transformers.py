"""Inside a transformer: what its tokens attend to, and how queries, keys and values relate to each other.

Shapes: attention probabilities ``(N, heads, L, L)``, tokens ``(N, L, C)``; heads and widths may differ
between the nets, the number of tokens may not. A loss gives one value per sample, ``(N,)``.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from potstill.losses._declare import Range, matches
from potstill.losses.reduce import blanked, mean_over_rows

__all__ = ["attention_maps", "hidden_states", "minilm_relation"]

FLOOR = 1e-7
"""Probabilities below it count as it: half precision rounds them to 0, whose logarithm is infinite."""
UNSEEN = -1e30
"""Score of a key that does not count: its probability is exactly 0."""
MOST_HEADS = 12


@matches("attention", weight=1.0)
def attention_maps(
    student: Tensor,
    teacher: Tensor,
    *,
    variant: Literal["kl", "mse"] = "kl",
    where: Tensor | None = None,
) -> Tensor:
    """Distance of the attention probabilities, query by query.

    Nets of different head counts are compared by the mean of their heads. Attention must be computed by
    plain operations to be seen: load with ``attn_implementation="eager"`` (transformers) and tap
    ``path:attention``, or call ``timm.layers.set_fused_attn(False)`` and tap ``blocks.0.attn.attn_drop``.

    Formula:
        variant kl: mean over heads and valid queries of sum over keys of a_t (log a_t - log a_s) - a_t + a_s,
        where the last two cancel unless dropout took something out of a row; variant mse: mean over heads,
        valid queries and keys of (a_s - a_t)^2

    Args:
        student: Attention probabilities ``(N, heads, L, L)``: of each head and query (second last), over
            the keys (last).
        teacher: The same of the teacher, ``(N, heads', L, L)``.
        variant: ``kl`` as MiniLM has it; ``mse`` as TinyBERT, which however compares the scores before the
            softmax. Squares of probabilities around 1/L are small: a weight of about ``L**2`` suits it.
        where: Boolean ``(N,)`` or ``(N, L)``: which samples, or which queries of each, count.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If an input is no batch of attention maps, or batches or token counts differ.

    Reference:
        Wang and others, "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
        Pre-Trained Transformers", 2020, https://arxiv.org/abs/2002.10957; Jiao and others, "TinyBERT", 2019,
        https://arxiv.org/abs/1909.10351

    Example:
        >>> even, sure = torch.full((1, 2, 2, 2), 0.5), torch.eye(2).expand(1, 4, 2, 2)
        >>> attention_maps(even, sure)
        tensor([0.6931])
    """
    if student.dim() != 4 or student.shape[2] != student.shape[3]:
        raise ValueError(f"expected attention (N, heads, L, L), got student {tuple(student.shape)}")
    if teacher.dim() != 4 or (student.shape[0], *student.shape[2:]) != (teacher.shape[0], *teacher.shape[2:]):
        raise ValueError(
            f"expected attention (N, heads, L, L) of one batch and over the same tokens, got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    ours = blanked(student.transpose(1, 2), where)  # (N, L, heads, L)
    theirs = blanked(teacher.transpose(1, 2), where)
    if ours.shape[2] != theirs.shape[2]:
        ours, theirs = ours.mean(dim=2, keepdim=True), theirs.mean(dim=2, keepdim=True)
    if variant == "mse":
        return mean_over_rows((ours - theirs).square().mean(dim=(2, 3)), where)
    ours, theirs = ours.clamp(min=FLOOR), theirs.clamp(min=FLOOR)
    divergence = theirs * (theirs.log() - ours.log()) - theirs + ours
    return mean_over_rows(divergence.sum(dim=3).mean(dim=2), where)


@matches("tokens", weight=1.0, adapter=True, combine="sum")
def hidden_states(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean squared difference of the hidden states of valid tokens, layer by layer.

    With ``layers: auto`` layer m of M in the student learns from layer m N / M of the N in the teacher, and
    its embeddings from the teacher's (TinyBERT's uniform map); the layers' losses add up.

    Formula:
        mean over valid tokens and channels of (A(h_s) - h_t)^2, A the adapter where widths differ

    Args:
        student: Adapted tokens ``(N, L, C)``.
        teacher: Tokens of the same shape.
        where: Boolean ``(N,)`` or ``(N, L)``: which samples, or which tokens of each, count.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If they are no tokens of one shape.

    Reference:
        Jiao and others, "TinyBERT: Distilling BERT for Natural Language Understanding", 2019,
        https://arxiv.org/abs/1909.10351

    Example:
        >>> hidden_states(torch.ones(1, 2, 4), torch.zeros(1, 2, 4), where=torch.tensor([[True, False]]))
        tensor([1.])
    """
    if student.dim() != 3 or student.shape != teacher.shape:
        raise ValueError(
            f"expected tokens (N, L, C) of one shape (an adapter makes them so), got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    ours, theirs = blanked(student, where), blanked(teacher, where)
    return mean_over_rows((ours - theirs).square().mean(dim=2), where)


@matches("tokens", weight=1.0, at="last")
def minilm_relation(
    student: Tensor,
    teacher: Tensor,
    *,
    relation_heads: Annotated[int, Range(least=1)] | None = None,
    split: Literal["none", "qkv"] = "none",
    where: Tensor | None = None,
) -> Tensor:
    """KL divergence between how the tokens of each net relate to each other.

    Tokens are split anew into relation heads, as many in both nets, so neither widths nor attention heads
    need agree. MiniLM v2: the queries, keys and values of any layer of the teacher and the student's last;
    ``layers: auto`` takes those of both last layers where they are modules of their own; else list the three
    pairs, or a fused projection such as ``blocks.11.attn.qkv`` with ``split: qkv`` (the authors take an upper
    middle layer of large teachers). MiniLM v1: :func:`attention_maps` of the last layers
    and this loss on their values, with as many relation heads as the net has attention heads.

    Formula:
        R(X) = softmax(X_h X_h^T / sqrt(d)) for each relation head h of width d; mean over heads and valid
        rows of KL(R(X_t) || R(X_s)); with split qkv the mean over X = Q, K, V

    Args:
        student: Tokens ``(N, L, C)``; ``(N, L, 3 C)`` with ``split="qkv"``.
        teacher: Tokens ``(N, L, C')``, or ``(N, L, 3 C')``.
        relation_heads: Into how many heads to split; it must divide both widths. By default the greatest
            number up to 12 (the authors' for base-sized teachers) that does.
        split: ``qkv`` where the last dimension holds queries, keys and values side by side.
        where: Boolean ``(N,)`` or ``(N, L)``: which samples, or which tokens of each, count, as rows and as
            what they relate to.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If an input is no batch of tokens, batches or token counts differ, or a width cannot be
            split.

    Reference:
        Wang and others, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
        Pretrained Transformers", 2020, https://arxiv.org/abs/2012.15828; v1: Wang and others, 2020,
        https://arxiv.org/abs/2002.10957

    Example:
        >>> minilm_relation(torch.zeros(1, 2, 4), math.sqrt(math.log(3)) * torch.eye(2).expand(1, 2, 2))
        tensor([0.0654])
    """
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"expected tokens (N, L, C) of one batch and one length, got student {tuple(student.shape)} and "
            f"teacher {tuple(teacher.shape)}"
        )
    parts = 3 if split == "qkv" else 1
    ours, theirs = (_parts(blanked(tokens, where), parts) for tokens in (student, teacher))
    heads = relation_heads or _most_heads(math.gcd(ours.shape[-1], theirs.shape[-1]))
    keys = where if where is not None and where.dim() == 2 else None
    logs = [_relations(tokens, heads, keys) for tokens in (ours, theirs)]  # (N, L, parts, heads, L) each
    divergence = logs[1].exp() * (logs[1] - logs[0])
    if keys is not None:
        counts = keys[:, None, None, None, :]
        divergence = torch.where(counts, divergence, torch.zeros_like(divergence))
    return mean_over_rows(divergence.sum(dim=4).mean(dim=(2, 3)), where)


def _parts(tokens: Tensor, parts: int) -> Tensor:
    """``(N, L, parts, C)``."""
    if tokens.shape[2] % parts:
        raise ValueError(
            f"split qkv: expected a width of three equal parts, got tokens {tuple(tokens.shape)}"
        )
    return tokens.reshape(*tokens.shape[:2], parts, tokens.shape[2] // parts)


def _most_heads(width: int) -> int:
    return next(heads for heads in range(min(MOST_HEADS, width), 0, -1) if width % heads == 0)


def _relations(tokens: Tensor, heads: int, keys: Tensor | None) -> Tensor:
    """Logarithm of how each token relates to the others that count: ``(N, L, parts, heads, L)``."""
    width = tokens.shape[3]
    if width % heads:
        raise ValueError(f"relation_heads: expected a divisor of the width {width}, got {heads}")
    split = tokens.reshape(*tokens.shape[:3], heads, width // heads).permute(0, 2, 3, 1, 4)
    scores = split @ split.transpose(3, 4) / math.sqrt(width // heads)  # (N, parts, heads, L, L)
    if keys is not None:
        counts = keys[:, None, None, None, :]
        scores = torch.where(counts, scores, torch.full_like(scores, UNSEEN))
    return torch.log_softmax(scores, dim=4).permute(0, 3, 1, 2, 4)
