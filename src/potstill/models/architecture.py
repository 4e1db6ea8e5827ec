"""How a pruned network differs from the one it was cut from: enough to build it again, as plain JSON.

Beside a weight file stands which modules are gone and which shapes and sizes changed. The original is made
by its recipe, the difference is applied, and the weights fit; nothing is unpickled. Where a configuration of
transformers says what is left, it stands there too, and the difference is that from what it says.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.errors import UserError
from potstill.files import read_json, write_json
from potstill.models.heads import fit_heads

__all__ = ["Architecture", "Passing", "says_all", "take_hooks"]

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class Passing(nn.Identity):
    """Stands where a block was: gives the first of what it gets, whatever else comes with it."""

    def forward(self, input: torch.Tensor, *others: object, **named: object) -> torch.Tensor:
        """``input`` as it is."""
        del others, named
        return input


@dataclass(frozen=True)
class Architecture:
    """The difference of a pruned network from its original.

    Attributes:
        removed: Paths of modules that let their input pass.
        modules: By path, ``attributes`` (numbers such as ``out_channels``) and shapes of ``tensors``.
        config: Of a model of transformers: its configuration; the rest is the difference from what it makes.

    >>> big, small = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Sequential(nn.Linear(4, 2), nn.Identity())
    >>> found = Architecture.between(big, small)
    >>> found.removed, found.modules["0"]["attributes"]
    (('1',), {'out_features': 2})
    >>> found.applied(big)[0](torch.zeros(1, 4)).shape
    torch.Size([1, 2])
    """

    removed: tuple[str, ...] = ()
    modules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None

    @classmethod
    def between(cls, original: nn.Module, pruned: nn.Module) -> Architecture:
        """What makes ``pruned`` of ``original``.

        Both have modules of the same paths but for the removed, or ``pruned`` has a configuration of its own.
        """
        config = _configuration(pruned)
        if config is not None and config != _configuration(original):
            rest = cls.between(_configured(original, config), pruned)
            return cls(rest.removed, rest.modules, config)
        before = dict(original.named_modules())
        removed: list[str] = []
        modules: dict[str, dict[str, Any]] = {}
        for path, module in pruned.named_modules():
            if isinstance(module, nn.Identity) and not isinstance(before[path], nn.Identity):
                removed.append(path)
                continue
            changed = _changed(before[path], module)
            if changed:
                modules[path] = changed
        return cls(tuple(removed), modules)

    def applied(self, original: nn.Module) -> nn.Module:
        """A copy of ``original`` with these shapes, its changed weights empty: load them next.

        Raises:
            UserError: If the network has no such modules or tensors.
        """
        model = copy.deepcopy(original) if self.config is None else _configured(original, self.config)
        try:
            for path in self.removed:
                model.get_submodule(path)
                model.set_submodule(path, Passing())
            for path, changed in self.modules.items():
                _reshape(model.get_submodule(path), changed)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError("architecture", f"does not fit {type(original).__name__}: {error}") from error
        fit_heads(model)
        return model

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        row = {"removed": list(self.removed), "modules": dict(self.modules)}
        write_json(path, row if self.config is None else {**row, "config": dict(self.config)})

    @classmethod
    def load(cls, path: Path) -> Architecture:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: If the file is gone or damaged.
        """
        read = read_json(path)
        if not isinstance(read.get("removed"), list) or not isinstance(read.get("modules"), dict):
            raise UserError(str(path), f"expected removed and modules, got keys {sorted(read)}")
        return cls(tuple(map(str, read["removed"])), read["modules"], read.get("config"))


def says_all(model: nn.Module) -> bool:
    """Whether the configuration of a model of transformers alone makes a network of its sizes."""
    config = _configuration(model)
    assert config is not None, "a model of transformers has a configuration"
    with torch.device("meta"):
        made = _configured(model, config)
    sizes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (made, model)]
    return sizes[0] == sizes[1]


def _configuration(model: nn.Module) -> dict[str, Any] | None:
    """What a model of transformers says of itself, as JSON would."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return None
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def _configured(original: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """A model of the original's class, as a configuration says."""
    kind: Any = type(original)
    given = type(original.config).from_dict(dict(config))  # type: ignore[union-attr]
    given._attn_implementation = original.config._attn_implementation  # type: ignore[union-attr]
    model: nn.Module = kind(given)
    take_hooks(model, copy.deepcopy(original))
    return model.train(original.training)


def take_hooks(model: nn.Module, source: nn.Module) -> None:
    """Give a model that was built anew what was hooked into another of its class.

    Args:
        model: The new one.
        source: The other, of which no further use is made: hooks may share what they remember.
    """
    there = dict(source.named_modules())
    for path, module in model.named_modules():
        for name in HOOKS:
            hooks = getattr(there.get(path), name, None)
            if hooks:
                setattr(module, name, hooks)


def _changed(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """Numbers and own tensors that differ; empty where nothing does."""
    attributes = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(after).items()
        if _is_size(value) and value != vars(before).get(name)
    }
    shapes = {name: list(tensor.shape) for name, tensor in _own(before).items()}
    tensors = {
        name: list(tensor.shape) for name, tensor in _own(after).items() if list(tensor.shape) != shapes[name]
    }
    return {"attributes": attributes, "tensors": tensors} if attributes or tensors else {}


def _is_size(value: object) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_is_size(each) for each in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return dict(named)


def _reshape(module: nn.Module, changed: Mapping[str, Any]) -> None:
    for name, value in changed["attributes"].items():
        if not hasattr(module, name):
            raise AttributeError(f"{type(module).__name__} has no {name}")
        setattr(module, name, tuple(value) if isinstance(value, list) else value)
    own = _own(module)
    for name, shape in changed["tensors"].items():
        tensor = own[name]
        empty = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
        if isinstance(tensor, nn.Parameter):
            setattr(module, name, nn.Parameter(empty, requires_grad=tensor.requires_grad))
        else:
            setattr(module, name, empty)
