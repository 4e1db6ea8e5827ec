"""Capture what the inside of a network computes, by module path, without touching its code.

Hooks are set once, when the network is wrapped: before compiling and before any other wrapper. They are
partials of module-level functions, so a deep copy's hooks write into the copy's own store, and they do
nothing outside :meth:`Tapped.forward`, so a tapped network can be used, copied and saved as it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill.batch import Signals
from potstill.errors import UserError, nearest

__all__ = ["Tapped", "first_tensor"]

INPUT = ":input"


class _Store:
    """Where the hooks of one :class:`Tapped` write; filled and emptied by its forward pass."""

    def __init__(self) -> None:
        self.open = False
        self.tensors: dict[str, Tensor] = {}
        self.versions: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def clear(self) -> None:
        self.open = False
        self.tensors = {}
        self.versions = {}
        self.calls = {}


def _keep(store: _Store, tap: str, value: Any) -> None:
    tensor = first_tensor(value)
    store.calls[tap] = store.calls.get(tap, 0) + 1
    if tensor is not None:
        store.tensors[tap] = tensor
        store.versions[tap] = version_of(tensor)


def _keep_output(store: _Store, tap: str, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
    if store.open:
        _keep(store, tap, output)


def _keep_input(
    store: _Store, tap: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if store.open:
        _keep(store, tap, args or kwargs)


def _remove(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def version_of(tensor: Tensor) -> int:
    """How often ``tensor`` was written in place; 0 where that is not tracked (compiled, inference mode)."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return 0
    return int(tensor._version)


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that an answer of a network stands for.

    Args:
        value: A tensor, a tuple or list (its first tensor), a mapping (``logits``, else its first tensor)
            or an object with ``logits``.

    Returns:
        The tensor, or ``None`` where there is none.

    >>> first_tensor((None, torch.ones(2)))
    tensor([1., 1.])
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        if isinstance(value.get("logits"), Tensor):
            return value["logits"]  # type: ignore[no-any-return]
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for found in map(first_tensor, value) if found is not None), None)
    logits = getattr(value, "logits", None)
    return logits if isinstance(logits, Tensor) else None


class Tapped(nn.Module):
    """A network that answers with its output and the tensors at the tapped layers.

    Args:
        model: Any network with one tensor as input.
        paths: Module paths as in ``model.named_modules()``; ``path:input`` taps what goes in.
        role: What messages call the network (``student``, ``teacher``).

    Raises:
        UserError: If a path names no module of the network; near names are listed.

    >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> signals = Tapped(network, ["1"])(torch.zeros(5, 4))
    >>> signals.output.shape, signals.taps["1"].shape
    (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    def __init__(self, model: nn.Module, paths: Sequence[str] = (), *, role: str = "model") -> None:
        super().__init__()
        self.model = model
        self.paths = tuple(dict.fromkeys(paths))
        self.role = role
        modules = dict(model.named_modules())
        for tap in self.paths:
            path = tap.removesuffix(INPUT)
            if not path or path not in modules:
                raise UserError(role, f"no layer '{path}'{nearest(path, [name for name in modules if name])}")
        self._store = _Store()
        self._handles = [self._hook(modules[tap.removesuffix(INPUT)], tap) for tap in self.paths]
        # A network outlives its wrapper (one teacher, many students): hooks go when the wrapper does.
        weakref.finalize(self, _remove, self._handles)

    def _hook(self, module: nn.Module, tap: str) -> torch.utils.hooks.RemovableHandle:
        if tap.endswith(INPUT):
            return module.register_forward_pre_hook(partial(_keep_input, self._store, tap), with_kwargs=True)
        return module.register_forward_hook(partial(_keep_output, self._store, tap))

    def forward(self, inputs: Tensor) -> Signals:
        """Run the network.

        Args:
            inputs: What the network takes, ``(N, ...)``.

        Returns:
            Its output and the captured tensors by path.

        Raises:
            UserError: If the output holds no tensor, or a tapped layer ran not exactly once, gave no
                tensor, or was overwritten in place after it ran.
        """
        store = self._store
        store.clear()
        store.open = True
        try:
            output = first_tensor(self.model(inputs))
            if output is None:
                raise UserError(
                    self.role, "expected a tensor as output, or a tuple or mapping that holds one"
                )
            for tap in self.paths:
                self._check(tap)
            return Signals(output, {tap: store.tensors[tap] for tap in self.paths})
        finally:
            store.clear()

    def _check(self, tap: str) -> None:
        """Refuse a tap whose tensor is missing, ambiguous or no longer what the layer computed."""
        store, calls = self._store, self._store.calls.get(tap, 0)
        if calls != 1:
            times = "never ran" if calls == 0 else f"ran {calls} times"
            raise UserError(
                self.role, f"layer '{tap}' {times} in one forward pass; tap a layer that runs once"
            )
        if tap not in store.tensors:
            raise UserError(self.role, f"layer '{tap}' gives no tensor; tap a layer inside or around it")
        if version_of(store.tensors[tap]) != store.versions[tap]:
            raise UserError(
                self.role,
                f"the tensor at layer '{tap}' was overwritten in place by what follows it (an activation "
                f"with inplace=True, or +=); tap the layer that overwrites it, or set its inplace=False",
            )

    def remove(self) -> None:
        """Take all hooks off the network; the wrapper then captures nothing."""
        _remove(self._handles)
        self._handles.clear()
        self.paths = ()
