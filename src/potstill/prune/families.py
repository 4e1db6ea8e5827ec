"""What can go from transformers' language models and encoders, so that the smaller one is again one of them.

Layers, neurons of the feed-forward part, attention heads inside their key-value groups, whole key-value
groups, and the hidden width. Widths stay uniform over layers, as the configuration has one number for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.prune.groups import Axis, Group, Slice, Structure

__all__ = ["Family", "family_of", "family_structure"]


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts, and what its configuration calls them.

    Attributes:
        types: ``model_type`` of the configurations.
        layers: Path of the list of layers, from the base model.
        up: What writes the neurons of a layer.
        down: What reads them.
        attention: Path of the attention in a layer; empty where heads cannot go.
        depth: The configuration's name for the number of layers.
        neurons: That for the neurons of a layer.
    """

    types: tuple[str, ...]
    layers: str
    up: tuple[str, ...]
    down: str
    attention: str = ""
    depth: str = "num_hidden_layers"
    neurons: str = "intermediate_size"


GATED = ("mlp.gate_proj", "mlp.up_proj")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma")
FAMILIES = (
    Family(DECODERS, "layers", GATED, "mlp.down_proj", "self_attn"),
    Family(("bert", "roberta", "electra"), "encoder.layer", ("intermediate.dense",), "output.dense"),
    Family(
        ("distilbert",),
        "transformer.layer",
        ("ffn.lin1",),
        "ffn.lin2",
        depth="n_layers",
        neurons="hidden_dim",
    ),
)
SCALED = ("gemma",)
"""Families that scale embeddings by their width, so that the width cannot change alone."""


def family_of(model: nn.Module) -> Family:
    """The family of a transformers model.

    Raises:
        UserError: If it is none that is known here.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    for family in FAMILIES:
        if kind in family.types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.types))
    raise UserError("prune", f"no family of transformers that is known here: {kind!r}; known: {known}")


def layers_path(model: Any, family: Family) -> str:
    """Path of the list of layers from the model itself."""
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    return base + family.layers


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
            _check_heads(model, family, axes)
            groups.extend(one for layer in layers for one in _heads(model, family, layer, axis))
        elif axis == "hidden":
            groups.append(_hidden(model, family, layers))
        elif axis != "layers":
            raise UserError("prune.axes", f"{axis} has no meaning for {type(model).__name__}")
    return Structure(tuple(groups), tuple(layers) if "layers" in axes else ())


def _check_heads(model: Any, family: Family, axes: Sequence[Axis]) -> None:
    if not family.attention:
        raise UserError(
            "prune.axes",
            f"heads cannot go from {type(model).__name__}: its configuration derives the size of a head from "
            "their number, so no loader could build the rest",
        )
    if "heads" in axes and "kv_groups" in axes:
        raise UserError("prune.axes", "expected heads or kv_groups, got both")


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
    place, config = f"{layer}.{family.attention}", model.config
    size = model.get_submodule(place).head_dim
    pairs = config.num_key_value_heads
    each = config.num_attention_heads // pairs
    wide = torch.arange(pairs * each * size)
    if axis == "heads" and each > 1:
        for pair in range(pairs):
            index = wide.reshape(pairs, each, size)[pair]
            yield Group(
                f"{place}.group{pair}",
                "heads",
                each,
                tuple(_rows(model, f"{place}.q_proj", 0, index)),
                tuple(_rows(model, f"{place}.o_proj", 1, index)),
                together="heads",
            )
        return
    queries, keys = wide.reshape(pairs, each * size), torch.arange(pairs * size).reshape(pairs, size)
    writers = [
        *_rows(model, f"{place}.q_proj", 0, queries),
        *_rows(model, f"{place}.k_proj", 0, keys),
        *_rows(model, f"{place}.v_proj", 0, keys),
    ]
    readers = tuple(_rows(model, f"{place}.o_proj", 1, queries))
    yield Group(f"{place}.q_proj", "kv_groups", pairs, tuple(writers), readers, together="kv_groups")


def _hidden(model: Any, family: Family, layers: Sequence[str]) -> Group:
    """The hidden width: one group through the whole model."""
    config = model.config
    if not family.attention or config.model_type in SCALED:
        raise UserError("prune.axes", f"the hidden width of {type(model).__name__} cannot go alone")
    units = config.hidden_size
    index = torch.arange(units).unsqueeze(1)
    base = layers[0].rpartition(".")[0].removesuffix(family.layers)
    writers = [Slice(f"{base}embed_tokens", "weight", 1, index), Slice(f"{base}norm", "weight", 0, index)]
    readers: list[Slice] = []
    for layer in layers:
        place = f"{layer}.{family.attention}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            writers.append(Slice(f"{layer}.{norm}", "weight", 0, index))
        for module in (f"{place}.o_proj", f"{layer}.{family.down}"):
            writers.extend(_rows(model, module, 0, index))
        for module in (
            *(f"{place}.{one}_proj" for one in "qkv"),
            *(f"{layer}.{up}" for up in family.up),
        ):
            readers.extend(_rows(model, module, 1, index))
    head = model.get_output_embeddings()
    if head is not None:
        name = next(path for path, module in model.named_modules() if module is head)
        readers.append(Slice(name, "weight", 1, index))
    return Group("hidden", "hidden", units, tuple(writers), tuple(readers), together="hidden")
