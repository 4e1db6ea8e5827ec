"""Language models that answer with what goes into their head, where the caller makes logits of it himself.

Asked with :data:`COUNTED` beside its inputs, a prepared network answers with a
:class:`~potstill.losses.heads.Projected`: hidden states of all tokens, and its head. Its head then projects
nothing. Otherwise it answers as before.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from potstill.losses.heads import Head, Projected
from potstill.matching.taps import first_tensor

__all__ = ["COUNTED", "answer_projected"]

COUNTED = "counted"
"""Name of the input that asks for hidden states: which predictions are learnt, ``(N, L)``."""
TOLERANCE = 1e-3


class _Answer:
    """Whether hidden states are wanted in the present pass, and what they are."""

    def __init__(self) -> None:
        self.wanted = False
        self.hidden: Tensor | None = None


def answer_projected(model: nn.Module, words: int) -> bool:
    """Let a model answer with hidden states where it is asked with :data:`COUNTED`.

    It is tried: the head's logits of the hidden states must be the model's own. Models whose output layer
    transformers does not name, or that change logits in other ways than by a soft cap, stay as they are.

    Args:
        model: A causal language model.
        words: Size of the vocabulary; what the head gives beyond is cut off.

    Returns:
        Whether the model can.
    """
    head = _head(model, words)
    if head is None:
        return False
    answer = _Answer()
    handles = [
        model.register_forward_pre_hook(functools.partial(_begin, answer), with_kwargs=True),
        _layer(model).register_forward_pre_hook(functools.partial(_divert, answer)),
        model.register_forward_hook(functools.partial(_end, answer, words)),
    ]
    if not _same(model, words):
        for handle in handles:
            handle.remove()
        return False
    return True


def _layer(model: nn.Module) -> Any:
    find = getattr(model, "get_output_embeddings", None)
    return None if find is None else find()


def _head(model: nn.Module, words: int) -> Head | None:
    layer = _layer(model)
    if not isinstance(layer, nn.Linear):
        return None
    cap = getattr(getattr(model, "config", None), "final_logit_softcapping", None)
    return Head.of(layer, cap)._replace(words=words)


def _begin(answer: _Answer, _model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    answer.wanted = COUNTED in kwargs
    return args, {name: value for name, value in kwargs.items() if name != COUNTED}


def _divert(answer: _Answer, _layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Keep what goes into the head, in the type that it would compute in; it gets no tokens to project."""
    if not answer.wanted:
        return None
    hidden, kind = args[0], args[0].device.type
    answer.hidden = hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden
    return (hidden[:, :0], *args[1:])


def _end(answer: _Answer, words: int, model: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    if not answer.wanted:
        return output
    hidden, head = answer.hidden, _head(model, words)
    answer.wanted, answer.hidden = False, None
    assert hidden is not None, "the head was called"
    assert head is not None, "what could be asked has a head"
    return Projected(hidden, head)


@torch.no_grad()
def _same(model: nn.Module, words: int) -> bool:
    """Whether the head makes the model's own logits of the hidden states that it gives."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(words, (2, 5), generator=generator).to(device)
    training = model.training
    model.eval()
    try:
        projected = model(input_ids=ids, **{COUNTED: torch.ones_like(ids)})
        logits = first_tensor(model(input_ids=ids))
    finally:
        model.train(training)
    assert isinstance(projected, Projected), "it was asked for hidden states"
    assert logits is not None, "a language model gives logits"
    found, wanted = projected.head.logits(projected.hidden)[..., :words], logits[..., :words].float()
    near = TOLERANCE * float(wanted.abs().max())
    return found.shape == wanted.shape and bool(torch.allclose(found, wanted, rtol=TOLERANCE, atol=near))
