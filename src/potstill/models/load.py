"""A network by name: ``module:attribute``, ``file.py:attribute``, or that of a library (``timm:name``)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from potstill.errors import UserError, nearest
from potstill.losses import Range
from potstill.models.layer_choice import InitConfig
from potstill.models.pretrained import PREFIX, classifier, folder_of
from potstill.specs import attribute

__all__ = ["ModelConfig", "build"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network, its weights, and how it wants its samples."""

    model: str
    """``module:attribute``, ``file.py:attribute``, ``timm:name``, ``torchvision:name``, or, for texts,
    ``transformers:name`` or ``teacher``."""
    init: InitConfig | None = None
    """With ``model: teacher``: which of its layers the student starts from."""
    weights: str | None = None
    """A safetensors file, or a checkpoint that torch reads with ``weights_only=True``."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Passed to what makes the network."""
    tokenizer: str | None = None
    """Folder of the tokenizer of a network of texts; by default the model's own, else the teacher's."""
    pretrained: bool = False
    """Let timm or torchvision load their own weights."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, for images scaled to 0..1; the network's own by default."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel."""
    size: Annotated[int, Range(least=1)] | None = None
    """Side to which its images are resized; as the data gives them by default."""


def build(
    config: ModelConfig, *, num_classes: int, search: Sequence[Path], where: str, **offered: Any
) -> nn.Module:
    """Make the network that a recipe names; its weights are loaded apart.

    Args:
        config: The recipe's ``teacher`` or ``student`` section.
        num_classes: Passed on as ``num_classes`` or ``vocab_size`` where the maker takes it and ``arguments``
            has none; 0 where it is not known.
        search: Folders in which a ``file.py`` is looked up.
        where: ``teacher`` or ``student``, for messages.
        **offered: Other arguments for makers that take them.

    Raises:
        UserError: If the maker cannot be found, refuses its arguments, or makes no ``torch.nn.Module``.

    Example:
        >>> config = ModelConfig(model="potstill.models.cifar:resnet8")
        >>> build(config, num_classes=10, search=[], where="student").linear.out_features
        10
    """
    library, colon, name = config.model.partition(":")
    if library == "timm" and colon:
        return _timm(config, name, num_classes, where)
    if library == "torchvision" and colon:
        return _torchvision(config, name, num_classes, where)
    if config.model.startswith(PREFIX):
        folder = folder_of(config.model, search, f"{where}.model")
        return classifier(folder, num_classes, config.arguments, f"{where}.model")
    if config.pretrained:
        raise UserError(f"{where}.pretrained", "only timm: and torchvision: networks have it; use weights")
    made = attribute(config.model, search, f"{where}.model")
    if isinstance(made, nn.Module):
        raise UserError(
            f"{where}.model", f"expected a class or function that makes a network, got one: {config.model}"
        )
    return _called(made, config, num_classes, offered, where)


def _called(
    maker: Any, config: ModelConfig, num_classes: int, offered: Mapping[str, Any], where: str
) -> nn.Module:
    if not callable(maker):
        raise UserError(
            f"{where}.model", f"expected a class or function, got {type(maker).__name__} {maker!r}"
        )
    taken = {name: value for name, value in offered.items() if _accepts(maker, name)}
    arguments = {**taken, **config.arguments}
    for name in ("num_classes", "vocab_size"):  # images and labelled texts; language models
        if num_classes and _accepts(maker, name):
            arguments.setdefault(name, num_classes)
    try:
        made = maker(**arguments)
    except UserError as error:
        if not error.where.startswith("arguments."):
            raise
        raise UserError(f"{where}.{error.where}", error.message) from error
    except TypeError as error:
        raise UserError(f"{where}.arguments", f"{config.model} refuses {arguments}: {error}") from error
    except Exception as error:  # whatever the user's code raises is the user's to read
        raise UserError(
            f"{where}.model", f"{config.model} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, nn.Module):
        raise UserError(
            f"{where}.model", f"expected a torch.nn.Module from {config.model}, got {type(made).__name__}"
        )
    if any(isinstance(parameter, UninitializedParameter) for parameter in made.parameters()):
        raise UserError(
            f"{where}.model",
            f"{config.model} has lazy layers without weights; call it once on an example where it is made",
        )
    return made


def _accepts(maker: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(maker).parameters
    except (TypeError, ValueError):  # built-in callables may have no signature
        return False
    return name in parameters


def _timm(config: ModelConfig, name: str, num_classes: int, where: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{where}.model", "timm is not installed: pip install 'potstill[vision]'") from error
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"{where}.model", f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    arguments = {"num_classes": num_classes, **config.arguments}
    try:
        made: nn.Module = timm.create_model(name, pretrained=config.pretrained, **arguments)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{where}.model", f"timm cannot make {name!r}: {error}") from error
    return made


def _torchvision(config: ModelConfig, name: str, num_classes: int, where: str) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise UserError(
            f"{where}.model", "torchvision is not installed: pip install 'potstill[vision]'"
        ) from error
    if name not in models.list_models():
        raise UserError(
            f"{where}.model", f"torchvision has no model {name!r}{nearest(name, models.list_models())}"
        )
    arguments = dict(config.arguments)
    if config.pretrained:
        arguments.setdefault("weights", "DEFAULT")
    else:
        arguments.setdefault("num_classes", num_classes)
    try:
        made: nn.Module = models.get_model(name, **arguments)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{where}.model", f"torchvision cannot make {name!r}: {error}") from error
    return made
