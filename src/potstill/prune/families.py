"""What can go from transformers' language models and encoders, so that the smaller one is again one of them.

Layers, neurons of the feed-forward part, attention heads inside their key-value groups, whole key-value
groups, and the hidden width. Widths stay uniform over layers, as the configuration has one number for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.prune.groups import Axis, Group, Slice, Structure

__all__ = ["Family", "family_of", "family_structure", "is_known", "layers_path"]


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts, and what its configuration calls them.

    Attributes:
        types: ``model_type`` of the configurations.
        layers: Path of the list of layers, from the base model.
        up: What writes the neurons of a layer.
        down: What reads them.
        attention: What makes queries, keys and values of a layer, and what reads them.
        sized: Whether its configuration has a size of a head beside their number, so that heads can go and
            any loader builds the rest.
        depth: The configuration's name for the number of layers.
        neurons: That for the neurons of a layer.
    """

    types: tuple[str, ...]
    layers: str
    up: tuple[str, ...]
    down: str
    attention: tuple[str, str, str, str]
    sized: bool = False
    depth: str = "num_hidden_layers"
    neurons: str = "intermediate_size"

    def head_size(self, model: Any) -> int:
        """Size of a head, whatever heads have gone."""
        config = model.config
        if not self.sized:
            return int(config.hidden_size // config.num_attention_heads)
        first = model.get_submodule(f"{layers_path(model, self)}.0.{self.attention[0]}")
        return int(first.out_features // config.num_attention_heads)


GATED = ("mlp.gate_proj", "mlp.up_proj")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma")
DECODER_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
ENCODER_ATTENTION = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
)
DISTIL_ATTENTION = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin")
FAMILIES = (
    Family(DECODERS, "layers", GATED, "mlp.down_proj", DECODER_ATTENTION, sized=True),
    Family(
        ("bert", "roberta", "electra"),
        "encoder.layer",
        ("intermediate.dense",),
        "output.dense",
        ENCODER_ATTENTION,
    ),
    Family(
        ("distilbert",),
        "transformer.layer",
        ("ffn.lin1",),
        "ffn.lin2",
        DISTIL_ATTENTION,
        depth="n_layers",
        neurons="hidden_dim",
    ),
)


def is_known(model: nn.Module) -> bool:
    """Whether a network is of one of the families."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return any(kind in family.types for family in FAMILIES)


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
            if "heads" in axes and "kv_groups" in axes:
                raise UserError("prune.axes", "expected heads or kv_groups, got both")
            groups.extend(one for layer in layers for one in _heads(model, family, layer, axis))
        elif axis == "hidden":
            groups.append(_hidden(model, family, layers, axes))
        elif axis != "layers":
            raise UserError("prune.axes", f"{axis} has no meaning for {type(model).__name__}")
    notes: tuple[str, ...] = ()
    if not family.sized and {"heads", "kv_groups"} & set(axes):
        notes = (
            f"heads of {type(model).__name__} go: its configuration derives their size from their number, so "
            "only Potstill can load what is left",
        )
    return Structure(tuple(groups), tuple(layers) if "layers" in axes else (), notes, family=True)


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
    config = model.config
    if not family.sized:
        raise UserError("prune.axes", f"the hidden width of {type(model).__name__} cannot go alone")
    units = config.hidden_size
    index = torch.arange(units).unsqueeze(1)
    base = layers[0].rpartition(".")[0].removesuffix(family.layers)
    writers = [Slice(f"{base}embed_tokens", "weight", 1, index), Slice(f"{base}norm", "weight", 0, index)]
    readers: list[Slice] = []
    for layer in layers:
        for norm in ("input_layernorm", "post_attention_layernorm"):
            writers.append(Slice(f"{layer}.{norm}", "weight", 0, index))
        for name in (family.attention[3], family.down):
            writers.extend(_rows(model, f"{layer}.{name}", 0, index))
        for name in (*family.attention[:3], *family.up):
            readers.extend(_rows(model, f"{layer}.{name}", 1, index))
    head = model.get_output_embeddings()
    if head is not None:
        name = next(path for path, module in model.named_modules() if module is head)
        readers.append(Slice(name, "weight", 1, index))
    return Group(
        "hidden", "hidden", units, tuple(writers), tuple(readers), "hidden", _widths(model, family, axes)
    )


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
