"""What each module of a network gives for an example: kinds, shapes, and in which order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill.batch import Inputs, ask
from potstill.matching.adapters import kind_of
from potstill.matching.taps import ATTENTION, INPUT, attention_in, first_tensor, version_of

__all__ = ["LayerShape", "number_in", "record"]


@dataclass(frozen=True)
class LayerShape:
    """What one module gave for an example.

    Attributes:
        path: Its path in the network; ``path:input`` for what went into it, ``path:attention`` for the
            attention in what it gave, ``:input`` for the input of the whole network.
        kind: ``maps``, ``tokens``, ``vector``, ``attention`` or ``other``.
        shape: Shape of the tensor, batch first.
        stable: It ran once and nothing overwrote its tensor, so it can be tapped.
        began: When its module began, counted in tensors seen before.
        ended: When its module ended, on the same clock.
        signed: Some value lies below 0: not the output of a ReLU.
        origin: Of what lies in a layer of a pruned transformer: the layer's number in the original, from 0,
            and how many that had.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    stable: bool = True
    began: int = 0
    ended: int = 0
    signed: bool = True
    origin: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Seen:
    """One tensor on its way through a network."""

    path: str
    tensor: Tensor
    version: int
    began: int
    ended: int
    signed: bool = True


def _below_zero(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool((tensor < 0).any())


def _begin(seen: list[_Seen], began: dict[str, int], path: str, _module: nn.Module, _args: Any) -> None:
    began[path] = len(seen)


def _end(
    seen: list[_Seen],
    began: dict[str, int],
    path: str,
    _module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    ended = len(seen)
    for name, value in ((path + INPUT, args or kwargs), (path, output)):
        tensor = first_tensor(value)
        if tensor is not None:
            seen.append(_Seen(name, tensor, version_of(tensor), began[path], ended, _below_zero(tensor)))
    attention = None if isinstance(output, Tensor) else attention_in(output)
    if attention is not None and all(item.tensor is not attention for item in seen):  # its innermost module's
        seen.append(_Seen(path + ATTENTION, attention, version_of(attention), began[path], ended))


def record(model: nn.Module, example: Inputs) -> list[LayerShape]:
    """Run ``model`` once and list what its modules gave, in the order in which they finished.

    The pass is without gradients and in eval mode; training mode and hooks are afterwards as before.

    Args:
        model: Any network that takes one tensor, or tensors by name.
        example: A small batch of inputs, ``(N, ...)``.

    >>> [layer.path for layer in record(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.ones(1, 2, 2))]
    [':input', '0:input', '0', '1:input', '1']
    """
    first = first_tensor(example)
    assert first is not None, "a network has inputs"
    seen = [_Seen(INPUT, first, version_of(first), 0, 0)]
    began: dict[str, int] = {}
    modes = {module: module.training for module in model.modules()}
    handles = []
    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(partial(_begin, seen, began, path)))
            handles.append(module.register_forward_hook(partial(_end, seen, began, path), with_kwargs=True))
    try:
        model.eval()
        with torch.no_grad():
            ask(model, example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    kept: Any = getattr(getattr(model, "config", None), "kept_layers", None)
    return _layer_shapes(seen, kept or {"layers": (), "of": 0})


def number_in(path: str) -> int | None:
    """The number of the layer that a path leads into, from 0; ``None`` where it leads into none.

    >>> number_in("model.layers.3.mlp"), number_in("model.norm")
    (3, None)
    """
    found = re.search(r"\.(\d+)(?=[.:]|$)", path)
    return None if found is None else int(found[1])


def _origin(path: str, kept: Mapping[str, Any]) -> tuple[int, int] | None:
    number = number_in(path)
    inside = number is not None and number < len(kept["layers"])
    return (kept["layers"][number], kept["of"]) if inside else None


def _layer_shapes(seen: list[_Seen], kept: Mapping[str, Any]) -> list[LayerShape]:
    """One entry a path, at the place where it was seen last."""
    calls = Counter(item.path for item in seen)
    last = {item.path: item for item in seen}
    return [
        LayerShape(
            item.path,
            "attention" if item.path.endswith(ATTENTION) else kind_of(item.tensor.shape),
            tuple(item.tensor.shape),
            calls[item.path] == 1 and version_of(item.tensor) == item.version,
            item.began,
            item.ended,
            item.signed,
            _origin(item.path, kept),
        )
        for item in seen
        if last[item.path] is item
    ]
