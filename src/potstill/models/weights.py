"""Weights in and out: safetensors, or checkpoints that torch reads without running any code."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.files import write_atomic

__all__ = ["fingerprint", "load_weights", "read_metadata", "read_state", "save_weights"]

NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")
PREFIXES = ("module.", "_orig_mod.", "model.")
SHOWN = 3


def load_weights(model: nn.Module, path: Path, where: str) -> None:
    """Load the weights of ``path`` into ``model``; every key and shape must fit.

    Floating-point weights are cast to the type of the network's own. Checkpoints may hold the weights
    under ``state_dict`` or ``model``, and keys may start with ``module.``, ``_orig_mod.`` or ``model.``.

    Args:
        model: The network.
        path: A ``.safetensors`` file or a torch checkpoint.
        where: Dotted key for messages.

    Raises:
        UserError: If the file is missing, empty, damaged, would run code when read, or holds another
            network's weights (the first missing and unexpected keys and the shapes are named).
    """
    own = model.state_dict()
    state = _stripped(read_state(path, where), own)
    own_names: Any = getattr(model, "own_names", None)
    if own_names is not None:  # a network that knows what names others gave its weights
        state = own_names(state)
    problems = _differences(own, state)
    if problems:
        raise UserError(where, f"{path} does not fit the network: {'; '.join(problems)}")
    model.load_state_dict(state)


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} expected {tuple(own[name].shape)}, got {tuple(state[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    found = []
    for title, names in (("missing", missing), ("unexpected", unexpected), ("shapes", shapes)):
        if names:
            rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            found.append(f"{title}: {', '.join(names[:SHOWN])}{rest}")
    return found


def _stripped(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take wrappers' prefixes off while none of the keys is the network's."""
    changed = True
    while changed and state and not any(name in own for name in state):
        changed = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
                changed = True
    counters = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    return {**{name: tensor for name, tensor in counters.items() if name not in state}, **state}


def read_state(path: Path, where: str) -> dict[str, Tensor]:
    """The named tensors of a weight file.

    Raises:
        UserError: As :func:`load_weights`, but for what does not fit a network.
    """
    if path.is_dir():
        raise UserError(where, f"expected a weight file, got the folder {path}")
    if not path.is_file():
        raise UserError(where, f"no such file: {path}")
    if path.stat().st_size == 0:
        raise UserError(where, f"expected weights, got the empty file {path}")
    if path.suffix == ".safetensors":
        try:
            state: dict[str, Tensor] = load_file(path)
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(where, f"{path} is damaged or no safetensors file: {error}") from error
        return state
    state = _nested(_read_checkpoint(path, where), path, where)
    odd = next((name for name in state if not name.isprintable()), None)
    if odd is not None:
        raise UserError(where, f"{path} is damaged: it names a tensor {odd!r}")
    return state


def _read_checkpoint(path: Path, where: str) -> Any:
    with path.open("rb") as stream:
        pickled = stream.read(2).startswith((b"PK", b"\x80"))  # a torch archive, or a bare pickle
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on what the errors below say in our words
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader fails on damaged bytes in ways that it does not list
        if "TorchScript" in str(error):
            raise UserError(where, f"expected a state_dict, got the TorchScript archive {path}") from error
        refused = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)
        if refused and pickled:
            raise UserError(
                where,
                f"{path} holds more than tensors, and reading it would run code, which Potstill never does; "
                "save its state_dict as safetensors instead",
            ) from error
        reason = "not written by torch" if refused else f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(where, f"{path} is damaged or no checkpoint: {reason}") from error


def _nested(content: Any, path: Path, where: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, however it was saved."""
    for _ in range(len(NESTED)):
        if not isinstance(content, Mapping):
            break
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        inner = next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            if tensors:
                return tensors
            break
        content = inner
    got = (
        f"keys {', '.join(map(_shown, list(content)[:6]))}"
        if isinstance(content, Mapping)
        else type(content).__name__
    )
    raise UserError(where, f"{path}: expected named tensors (a state_dict), got {got}")


def _shown(key: object) -> str:
    """A key on one line, whatever damage made of it."""
    return str(key) if str(key).isprintable() else repr(key)


def read_metadata(path: Path) -> dict[str, str]:
    """Texts that are stored beside weights; none in files that can hold none."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(str(path), f"is damaged or no safetensors file: {error}") from error


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the weights as safetensors, whole or not at all; tensors that share memory are written apart.

    Args:
        model: The network.
        path: Where to.
        metadata: Texts to store beside them.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with write_atomic(path) as aside:
        save_file(state, aside, metadata=dict(metadata or {}))


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
