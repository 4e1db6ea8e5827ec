"""Capture what the inside of a network computes, by module path, without touching its code.

Hooks are set once, when the network is wrapped: before compiling and before any other wrapper. They are
partials of module-level functions, so a deep copy's hooks write into the copy's own store, and they do
nothing outside :meth:`Tapped.forward`, so a tapped network can be used, copied and saved as it is.

``path`` taps what a module gives, ``path:input`` what goes into it, ``path:attention`` the attention
probabilities ``(N, heads, L, L)`` in what it gives, and ``:input`` the input of the whole network.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from potstill.batch import Inputs, Signals, ask
from potstill.errors import UserError, nearest
from potstill.losses.heads import Projected

__all__ = ["Tapped", "attention_in", "first_tensor"]

INPUT = ":input"
ATTENTION = ":attention"
NO_ATTENTION = (
    "fused kernels never compute it: load with attn_implementation='eager' (transformers), or call "
    "timm.layers.set_fused_attn(False) before making the network and tap 'blocks.0.attn.attn_drop' (timm)"
)


class _Store:
    """Where the hooks of one :class:`Tapped` write; filled and emptied by its forward pass."""

    def __init__(self) -> None:
        self.open = False
        self.until: str | None = None
        self.differentiable = False
        self.tensors: dict[str, Tensor] = {}
        self.versions: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def clear(self) -> None:
        self.open = False
        self.until = None
        self.differentiable = False
        self.tensors = {}
        self.versions = {}
        self.calls = {}


class _ReachedError(Exception):
    """Ends a forward pass at the layer that it was to reach."""


def _keep(store: _Store, tap: str, value: Any) -> None:
    tensor = attention_in(value) if tap.endswith(ATTENTION) else first_tensor(value)
    store.calls[tap] = store.calls.get(tap, 0) + 1
    if tensor is not None:
        if store.differentiable and tensor.is_floating_point() and not tensor.requires_grad:
            tensor.requires_grad_()  # nothing before it does: what follows is differentiable by it
        store.tensors[tap] = tensor
        store.versions[tap] = version_of(tensor)


def _keep_output(store: _Store, tap: str, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
    if store.open:
        _keep(store, tap, output)
        if store.until == tap:
            raise _ReachedError


def _keep_input(
    store: _Store, tap: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if store.open:
        _keep(store, tap, args or kwargs)


def _module_path(tap: str) -> str:
    return tap.removesuffix(INPUT).removesuffix(ATTENTION)


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


def attention_in(value: Any) -> Tensor | None:
    """The first tensor ``(N, heads, L, L)`` in an answer of a module; ``None`` where there is none.

    >>> attention_in((torch.zeros(2, 3, 8), torch.zeros(2, 4, 3, 3))).shape
    torch.Size([2, 4, 3, 3])
    """
    if isinstance(value, Tensor):
        return value if value.dim() == 4 and value.shape[2] == value.shape[3] else None
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for found in map(attention_in, value) if found is not None), None)
    return None


class Tapped(nn.Module):
    """A network that answers with its output and the tensors at the tapped layers.

    Where ``:input`` is tapped and gradients are computed, the network can be differentiated by its input and
    by every tapped tensor, frozen or not, and twice: attention is then computed without fused kernels.

    Args:
        model: Any network that takes one tensor, or tensors by name.
        paths: Module paths as in ``model.named_modules()``; ``path:input`` taps what goes in,
            ``path:attention`` the attention in what comes out, ``:input`` the network's own input.
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
            path = _module_path(tap)
            if tap != INPUT and (not path or path not in modules):
                raise UserError(role, f"no layer '{path}'{nearest(path, [name for name in modules if name])}")
        self._store = _Store()
        self._handles = [self._hook(modules[_module_path(tap)], tap) for tap in self.paths if tap != INPUT]
        # A network outlives its wrapper (one teacher, many students): hooks go when the wrapper does.
        weakref.finalize(self, _remove, self._handles)

    def _hook(self, module: nn.Module, tap: str) -> torch.utils.hooks.RemovableHandle:
        if tap.endswith(INPUT):
            return module.register_forward_pre_hook(partial(_keep_input, self._store, tap), with_kwargs=True)
        return module.register_forward_hook(partial(_keep_output, self._store, tap))

    def forward(self, inputs: Inputs, until: str | None = None) -> Signals:
        """Run the network.

        Args:
            inputs: What the network takes, ``(N, ...)``, or such tensors by the names of its arguments.
            until: A tapped path: nothing is computed after it, its tensor stands for the output, and the
                taps are those that ran before it.

        Returns:
            Its output and the captured tensors by path; a network that answers with :class:`Signals` adds
            what it names itself.

        Raises:
            UserError: If the output holds no tensor, or a tapped layer ran not exactly once, gave no
                tensor, or was overwritten in place after it ran.
        """
        store = self._store
        store.clear()
        store.open, store.until = True, until
        try:
            answer = self._run(inputs)
            own = answer if isinstance(answer, Signals) else None
            output = own.output if own is not None else first_tensor(answer)
            if output is None:
                raise UserError(
                    self.role, "expected a tensor as output, or a tuple or mapping that holds one"
                )
            for tap in self.paths:
                self._check(tap)
            taps = {tap: store.tensors[tap] for tap in self.paths}
            if own is not None:
                return Signals(output, {**own.taps, **taps}, own.head)
            return Signals(output, taps, answer.head if isinstance(answer, Projected) else None)
        except _ReachedError:
            return Signals(store.tensors[store.until or ""], dict(store.tensors))
        finally:
            store.clear()

    def _run(self, inputs: Inputs) -> Any:
        store = self._store
        # Compiled code can be differentiated once; the loss that wants it twice says so.
        eager = not torch.compiler.is_compiling()
        store.differentiable = eager and INPUT in self.paths and torch.is_grad_enabled()
        if INPUT in self.paths:
            if not isinstance(inputs, Tensor):
                raise UserError(self.role, "has tokens as input, which nothing can be differentiated by")
            # What the caller has a graph for stays in it; a batch stays as it is.
            inputs = inputs if inputs.requires_grad else inputs.detach()
            _keep(store, INPUT, inputs)
        with sdpa_kernel(SDPBackend.MATH) if store.differentiable else contextlib.nullcontext():
            return ask(self.model, inputs)

    def _check(self, tap: str) -> None:
        """Refuse a tap whose tensor is missing, ambiguous or no longer what the layer computed."""
        store, calls = self._store, self._store.calls.get(tap, 0)
        if calls != 1:
            times = "never ran" if calls == 0 else f"ran {calls} times"
            raise UserError(
                self.role, f"layer '{tap}' {times} in one forward pass; tap a layer that runs once"
            )
        if tap not in store.tensors and tap.endswith(ATTENTION):
            raise UserError(self.role, f"layer '{_module_path(tap)}' gives no attention; {NO_ATTENTION}")
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
