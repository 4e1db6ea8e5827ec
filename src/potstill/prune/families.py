"""Families of transformers' language models and encoders: where parts lie, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from potstill.errors import UserError

__all__ = ["Family", "family_of", "is_known", "layers_path"]


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts, and what its configuration calls them.

    Attributes:
        types: ``model_type`` of the configurations.
        layers: Path of the list of layers, from the base model.
        up: What writes the neurons of a layer.
        down: What reads them.
        attention: What makes queries, keys and values of a layer, and what reads them.
        norms: Its norms over the hidden width.
        sized: Whether its configuration has a size of a head beside their number, so that heads can go and
            any loader builds the rest; decoders have one.
        depth: The configuration's name for the number of layers.
        neurons: That for the neurons of a layer.
    """

    types: tuple[str, ...]
    layers: str
    up: tuple[str, ...]
    down: str
    attention: tuple[str, str, str, str]
    norms: tuple[str, str]
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
    Family(
        DECODERS,
        "layers",
        GATED,
        "mlp.down_proj",
        DECODER_ATTENTION,
        ("input_layernorm", "post_attention_layernorm"),
        sized=True,
    ),
    Family(
        ("bert", "roberta", "electra"),
        "encoder.layer",
        ("intermediate.dense",),
        "output.dense",
        ENCODER_ATTENTION,
        ("attention.output.LayerNorm", "output.LayerNorm"),
    ),
    Family(
        ("distilbert",),
        "transformer.layer",
        ("ffn.lin1",),
        "ffn.lin2",
        DISTIL_ATTENTION,
        ("sa_layer_norm", "output_layer_norm"),
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
