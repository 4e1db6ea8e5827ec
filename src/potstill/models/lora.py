"""Students of which a few weights learn: low-rank updates beside frozen layers, by peft.

Reference:
    Hu and others, "LoRA: Low-Rank Adaptation of Large Language Models", 2021, https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from potstill.errors import UserError
from potstill.losses import Range
from potstill.models.load import ModelConfig

__all__ = ["LanguageStudentConfig", "LoraConfig", "merged", "save_adapters", "with_lora"]

ADAPTER = "default"
INNER = "base_model.model."
"""What peft's own files put before the name of each weight."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates learn, all else stays as it is."""

    rank: Annotated[int, Range(least=1)] = 8
    """Rank of each update."""
    alpha: Annotated[float, Range(above=0)] = 16.0
    """Updates are multiplied by alpha over rank."""
    dropout: Annotated[float, Range(least=0, most=0.9999)] = 0.0
    """Of what updates see."""
    layers: tuple[str, ...] = ()
    """Ends of the names of layers with an update, such as ``q_proj``; all linear layers but the output by
    default."""

    shorthand = "rank"


@dataclass(frozen=True, kw_only=True)
class LanguageStudentConfig(ModelConfig):
    """The language model to train, or a few weights beside it."""

    lora: LoraConfig | None = None
    """Train low-rank updates alone."""


def with_lora(network: nn.Module, config: LoraConfig) -> nn.Module:
    """A language model with updates in its layers, of which alone parameters learn; changed in place.

    Raises:
        UserError: If peft is not installed, the network is none of transformers, or no layer has such a name.
    """
    peft = _peft()
    if not hasattr(network, "save_pretrained"):
        kind = type(network).__name__
        raise UserError("student.lora", f"needs a language model of transformers, got {kind}")
    try:
        return peft.inject_adapter_in_model(_settings(config), network, ADAPTER)  # type: ignore[no-any-return]
    except ValueError as error:
        raise UserError("student.lora.layers", str(error).splitlines()[0]) from error


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError("student.lora", "peft is not installed: pip install 'potstill[text]'") from error
    return peft


def _settings(config: LoraConfig) -> Any:
    return _peft().LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.layers) or "all-linear",
        task_type="CAUSAL_LM",
    )


def _updates(network: nn.Module) -> dict[str, Any]:
    """Layers with an update by name."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "get_base_layer")}


def merged(network: nn.Module) -> nn.Module:
    """A network with all updates added to the weights; the network itself, where it has none.

    It answers as ``network``, which stays as it is, without peft.
    """
    if not _updates(network):
        return network
    whole = copy.deepcopy(network)
    for name, layer in _updates(whole).items():
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(whole.get_submodule(parent), last, layer.get_base_layer())
    return whole.requires_grad_(True)


def save_adapters(network: nn.Module, folder: Path) -> None:
    """Write the updates as peft reads them beside the network that they belong to; nothing without any."""
    if not _updates(network):
        return
    from safetensors.torch import save_file

    config: Any = network.peft_config[ADAPTER]  # type: ignore[index]
    state = _peft().get_peft_model_state_dict(network, adapter_name=ADAPTER)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tensors = {INNER + name.removeprefix(INNER): each.contiguous().cpu() for name, each in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
