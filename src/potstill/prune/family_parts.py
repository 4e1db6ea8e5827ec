"""What can go from transformers' language models and encoders, so that the smaller one is again one of them.

Layers, neurons of the feed-forward part, attention heads inside their key-value groups, whole key-value
groups, and the hidden width. Widths stay uniform over layers, as the configuration has one number for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.prune.families import Family, family_of, layers_path
from potstill.prune.groups import Axis, Group, Slice, Structure

__all__ = ["family_structure"]


def family_structure(model: nn.Module, axes: Sequence[Axis] = ("layers", "mlp")) -> Structure:
    """What may go from a transformers model along some axes.

    Args:
        model: The model.
        axes: ``layers``, ``mlp``, ``heads`` (ranked inside each key-value group, equally many from each),
            ``kv_groups`` (a key-value head and all heads that read it) and ``hidden``.

    Raises:
        UserError: If its family is unknown, or cannot go along an axis.
    """
    family = family_of(model)
    path = layers_path(model, family)
    count = len(model.get_submodule(path))  # type: ignore[arg-type]
    layers = [f"{path}.{number}" for number in range(count)]
    groups: list[Group] = []
    for axis in axes:
        if axis == "mlp":
            groups.extend(_neurons(model, family, layer) for layer in layers)
        elif axis in ("heads", "kv_groups"):
            if "heads" in axes and "kv_groups" in axes:
                raise UserError("prune.axes", "expected heads or kv_groups, got both")
            groups.extend(one for layer in layers for one in _heads(model, family, layer, axis))
        elif axis == "hidden":
            groups.append(_hidden(model, family, layers, axes))
        elif axis != "layers":
            raise UserError("prune.axes", f"{axis} has no meaning for {type(model).__name__}")
    notes = () if family.sized else tuple(_encoder_notes(model, axes))
    return Structure(tuple(groups), tuple(layers) if "layers" in axes else (), notes, family=True)


def _encoder_notes(model: nn.Module, axes: Sequence[Axis]) -> Iterator[str]:
    """What cannot be had where the size of a head is derived from other numbers."""
    name, alone = type(model).__name__, "so only Potstill can load what is left"
    if {"heads", "kv_groups"} & set(axes):
        yield f"heads of {name} go: its configuration derives their size from their number, {alone}"
    if "hidden" in axes:
        yield (
            f"hidden width of {name} goes: its configuration derives the size of a head from it, {alone}; "
            "layer norms over fewer channels are other functions, which only training makes up for"
        )


def _rows(model: nn.Module, module: str, dim: int, index: Tensor) -> Iterator[Slice]:
    """The units' place in a matrix, and in its bias where they are written."""
    yield Slice(module, "weight", dim, index)
    if dim == 0 and getattr(model.get_submodule(module), "bias", None) is not None:
        yield Slice(module, "bias", 0, index)


def _neurons(model: nn.Module, family: Family, layer: str) -> Group:
    units = model.get_submodule(f"{layer}.{family.down}").in_features
    assert isinstance(units, int)
    index = torch.arange(units).unsqueeze(1)
    writers = [piece for up in family.up for piece in _rows(model, f"{layer}.{up}", 0, index)]
    readers = tuple(_rows(model, f"{layer}.{family.down}", 1, index))
    return Group(f"{layer}.{family.up[0]}", "mlp", units, tuple(writers), readers, together="mlp")


def _heads(model: Any, family: Family, layer: str, axis: Axis) -> Iterator[Group]:
    """Heads of each key-value group, or the key-value groups of a layer."""
    query, key, value, out = (f"{layer}.{name}" for name in family.attention)
    size = family.head_size(model)
    pairs = model.get_submodule(key).out_features // size
    each = model.get_submodule(query).out_features // size // pairs
    wide = torch.arange(pairs * each * size)
    if axis == "heads" and each > 1:
        for pair in range(pairs):
            index = wide.reshape(pairs, each, size)[pair]
            yield Group(
                f"{layer}.{family.attention[0].rpartition('.')[0]}.group{pair}",
                "heads",
                each,
                tuple(_rows(model, query, 0, index)),
                tuple(_rows(model, out, 1, index)),
                together="heads",
                left=_dividing(model, family, each, pairs),
            )
        return
    queries, keys = wide.reshape(pairs, each * size), torch.arange(pairs * size).reshape(pairs, size)
    writers = [
        *_rows(model, query, 0, queries),
        *_rows(model, key, 0, keys),
        *_rows(model, value, 0, keys),
    ]
    readers = tuple(_rows(model, out, 1, queries))
    left = _dividing(model, family, pairs, each)
    yield Group(query, "kv_groups", pairs, tuple(writers), readers, together="kv_groups", left=left)


def _dividing(model: Any, family: Family, units: int, each: int) -> tuple[int, ...]:
    """How many of ``units`` may be left: the hidden width must be a multiple of all heads."""
    if not family.sized:
        return ()
    return tuple(count for count in range(1, units) if model.config.hidden_size % (count * each) == 0)


def _hidden(model: Any, family: Family, layers: Sequence[str], axes: Sequence[Axis]) -> Group:
    """The hidden width: one group through the whole model."""
    units = model.get_submodule(f"{layers[0]}.{family.up[0]}").in_features
    index = torch.arange(units).unsqueeze(1)
    base = layers[0].rpartition(".")[0].removesuffix(family.layers)
    writers = list((_decoder_ends if family.sized else _encoder_ends)(model, base, index))
    readers: list[Slice] = []
    for layer in layers:
        for name in (*family.norms, family.attention[3], family.down):
            writers.extend(_rows(model, f"{layer}.{name}", 0, index))
        for name in (*family.attention[:3], *family.up):
            readers.extend(_rows(model, f"{layer}.{name}", 1, index))
    last = _last_reader(model, family, base, units)
    if last is not None:
        readers.append(Slice(last, "weight", 1, index))
    left = _widths(model, family, axes) if family.sized else ()
    return Group("hidden", "hidden", units, tuple(writers), tuple(readers), "hidden", left)


def _decoder_ends(model: nn.Module, base: str, index: Tensor) -> Iterator[Slice]:
    """What writes the hidden width of a decoder outside its layers."""
    yield Slice(f"{base}embed_tokens", "weight", 1, index)
    yield from _rows(model, f"{base}norm", 0, index)


def _encoder_ends(model: nn.Module, base: str, index: Tensor) -> Iterator[Slice]:
    """What writes it before the layers of an encoder: embeddings and their norm, or what widens them."""
    if any(name == f"{base}embeddings_project" for name, _ in model.named_modules()):
        yield from _rows(model, f"{base}embeddings_project", 0, index)
        return
    for name, module in model.get_submodule(f"{base}embeddings").named_modules():
        if isinstance(module, nn.Embedding):
            yield Slice(f"{base}embeddings.{name}", "weight", 1, index)
        elif isinstance(module, nn.LayerNorm):
            yield from _rows(model, f"{base}embeddings.{name}", 0, index)


def _last_reader(model: Any, family: Family, base: str, units: int) -> str | None:
    """What reads the hidden width after the layers: a decoder's words, an encoder's pooler or head."""
    if family.sized:
        head = model.get_output_embeddings()
        return next((path for path, module in model.named_modules() if module is head and head), None)
    inside = (f"{base}embeddings", f"{base}{family.layers}.")
    after = (
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.in_features == units and not path.startswith(inside)
    )
    return next(after, None)


def _widths(model: Any, family: Family, axes: Sequence[Axis]) -> tuple[int, ...]:
    """Hidden widths that are multiples of any number of heads that may be left."""
    config = model.config
    heads, pairs = config.num_attention_heads, config.num_key_value_heads
    counts = {heads}
    if "heads" in axes:
        counts |= {pairs * each for each in _dividing(model, family, heads // pairs, pairs)}
    if "kv_groups" in axes:
        counts |= {left * heads // pairs for left in _dividing(model, family, pairs, heads // pairs)}
    step = math.lcm(*counts)
    return tuple(range(step, config.hidden_size, step))
