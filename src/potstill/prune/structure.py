"""What can go from any network for images: found by tracing it, kept where removal proves exact.

Torch-Pruning follows a unit through additions, concatenations and flattening. Every group that it finds is
then tried: a few units are removed, and masked, and the outputs must agree. So a shortcut that pads
channels (which tracing misreads), a normalisation over channels or an attention whose heads would break
stay whole instead of breaking the network.

Reference:
    Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning", 2023,
    https://arxiv.org/abs/2301.12900
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill.batch import Inputs, ask
from potstill.errors import UserError
from potstill.matching.taps import first_tensor
from potstill.models.heads import is_packed
from potstill.prune.grouped import is_grouped, join_groups
from potstill.prune.groups import Axis, Group, Plan, Slice, Structure
from potstill.prune.removal import is_transposed, masked, removed

__all__ = ["find_structure"]

EXACT = 1e-4
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def find_structure(
    model: nn.Module,
    example: Inputs,
    axes: Sequence[Axis] = ("layers", "channels"),
    *,
    exact: bool = True,
) -> Structure:
    """Blocks and channels that can go.

    Args:
        model: The network; left as it is.
        example: A small batch of its inputs, ``(N, ...)``, or several by name.
        axes: ``layers`` for blocks, ``channels`` for channels (neurons of linear layers too), ``heads`` for
            those of self-attention.
        exact: Whether units stay whose removal and masking give different answers, as where a norm looks at
            all channels. Without it, what is left of the network may need other arguments to run.

    Raises:
        UserError: If Torch-Pruning is not installed, nothing can go at all, or an axis is none of these.
    """
    for axis in axes:
        if axis not in ("layers", "channels", "heads"):
            raise UserError(
                "prune.axes",
                f"{axis} has no meaning for {type(model).__name__}, which is of no known family; "
                "expected layers, channels or heads",
            )
    model = copy.deepcopy(model).float().eval().requires_grad_(True)
    example = example.float() if isinstance(example, Tensor) else example
    blocks = tuple(_blocks(model, example)) if "layers" in axes else ()
    groups: list[Group] = []
    notes: list[str] = []
    traced = join_groups(model, _traced(model, example, notes)) if "channels" in axes else []
    for group in (*traced, *(_heads(model) if "heads" in axes else ())):
        reason = _grouped(model, group) or (_problem(model, group, example) if exact else "")
        if reason:
            notes.append(f"{group.name} keeps its {group.units} {group.axis}: {reason}")
        else:
            groups.append(group)
    if not groups and not blocks:
        why = "; ".join(notes[:3]) or "no block of equal input and output, and no channels, were found"
        raise UserError("prune.axes", f"nothing can be removed from {type(model).__name__}: {why}")
    return Structure(tuple(groups), blocks, tuple(notes))


def _blocks(model: nn.Module, example: Inputs) -> Iterator[str]:
    """Children of sequences that are called once and answer in the shape of what they get, outermost only."""
    listed = [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for name, child in module.named_children()
        if any(True for _ in child.children()) and any(True for _ in child.parameters())
    ]
    calls: dict[str, list[bool]] = {path: [] for path in listed}

    def note(path: str, inputs: tuple[Any, ...], output: Any) -> None:
        same = (
            len(inputs) > 0
            and isinstance(inputs[0], Tensor)
            and isinstance(output, Tensor)
            and inputs[0].shape == output.shape
        )
        calls[path].append(same)

    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _, inputs, output, path=path: note(path, inputs, output)
        )
        for path in listed
    ]
    with torch.no_grad():
        ask(model, example)
    for handle in handles:
        handle.remove()
    found: list[str] = []
    for path in listed:
        if calls[path] == [True] and not any(path.startswith(f"{other}.") for other in found):
            found.append(path)
    return iter(found)


def _traced(model: nn.Module, example: Inputs, notes: list[str]) -> Iterator[Group]:
    """The groups that Torch-Pruning finds, as tables of slices; none, with a note, where tracing fails."""
    try:
        import torch_pruning
    except ImportError as error:
        raise UserError("prune", "Torch-Pruning is not installed: pip install 'potstill[prune]'") from error
    names = {module: path for path, module in model.named_modules()}
    kinds = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(model, example, verbose=False)
            found = list(graph.get_all_groups(root_module_types=[*kinds, nn.Linear]))
    except Exception as error:  # it meets any operation that a network may have, and fails in its own ways
        notes.append(
            f"all channels stay: {type(model).__name__} cannot be traced ({type(error).__name__}: {error})"
        )
        return
    for seen in found:
        root = seen[0].dep.target.module
        traced = _by_channel(graph, seen)
        units = len(traced[0].idxs)
        writers: list[Slice] = []
        readers: list[Slice] = []
        for item in traced.items:
            module = item.dep.target.module
            if module not in names or not any(True for _ in module.parameters()):
                continue
            index = _index(item, units)
            incoming = item.dep.handler.__name__ == "prune_in_channels"
            (readers if incoming else writers).extend(_slices(module, names[module], index, incoming))
        if readers:
            yield Group(names[root], "channels", units, tuple(writers), tuple(readers))


def _heads(model: nn.Module) -> Iterator[Group]:
    """The heads of each self-attention: rows of queries, keys and values, and columns of what reads them."""
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            if module.in_proj_weight is None or not module.batch_first or module.bias_k is not None:
                continue
            writes = [(path, "in_proj_weight"), (path, "in_proj_bias")]
            reads = f"{path}.out_proj"
        elif is_packed(module):
            writes, reads = [(f"{path}.qkv", "weight"), (f"{path}.qkv", "bias")], f"{path}.proj"
        else:
            continue
        heads, size = module.num_heads, module.head_dim
        assert isinstance(heads, int)
        assert isinstance(size, int)
        index = torch.arange(heads * size).reshape(heads, size)
        packed = torch.cat([index + part * heads * size for part in range(3)], dim=1)  # (heads, 3 * size)
        writers = tuple(
            Slice(owner, name, 0, packed)
            for owner, name in writes
            if getattr(model.get_submodule(owner), name, None) is not None
        )
        yield Group(path, "heads", heads, writers, (Slice(reads, "weight", 1, index),))


def _by_channel(graph: Any, traced: Any) -> Any:
    """The group traced from where its units are fewest.

    Many values of a linear layer may become one channel of a map. Seen from the layer each is a unit, and
    some are not followed further; from what reads the map, all of them go with their channel.
    """
    fewest = min(traced.items, key=lambda item: len(set(item.idxs)))
    root, units = traced[0], len(set(fewest.idxs))
    if units == len(root.idxs):
        return traced
    other = graph.get_pruning_group(fewest.dep.target.module, fewest.dep.handler, list(range(units)))
    same = [item for item in other.items if item.dep.target is root.dep.target]
    covered = any(len(set(item.idxs)) == len(root.idxs) for item in same)
    return other if covered else traced  # else it is one side of a concatenation


def _index(item: Any, units: int) -> Tensor:
    """``(units, k)`` positions, -1 where a unit has fewer."""
    rows: list[list[int]] = [[] for _ in range(units)]
    for position, unit in zip(item.idxs, item.root_idxs, strict=True):
        rows[unit].append(position)
    width = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def _slices(module: nn.Module, path: str, index: Tensor, incoming: bool) -> Iterator[Slice]:
    turned = is_transposed(module)
    if incoming:
        yield Slice(path, "weight", 0 if turned else 1, index)
        return
    for name in BATCH_NORM:
        if isinstance(getattr(module, name, None), Tensor):
            yield Slice(path, name, 1 if turned and name == "weight" else 0, index)


def _grouped(model: nn.Module, group: Group) -> str:
    """Why a convolution among its tensors keeps a group whole; empty where none does."""
    for piece in group.slices:
        module = model.get_submodule(piece.module)
        if is_transposed(module) and module.groups != 1:
            return f"{piece.module} is a transposed convolution of groups"
        if is_grouped(module) and (piece.dim == 1 or piece.index.shape == (module.out_channels, 1)):
            return f"{piece.module} is a grouped convolution among others, or of channels that must stay"
    return ""


def _problem(model: nn.Module, group: Group, example: Inputs) -> str:
    """Why a group must stay whole; empty where removing and masking some of its units agree."""
    if group.units < 2:
        return "there is only one"
    plan = Plan(units={group.name: (0, group.units // 2) if group.units > 2 else (0,)})
    structure = Structure((group,))
    try:
        with torch.no_grad():
            small, whole = (
                first_tensor(ask(make(model, plan, structure), example)) for make in (removed, masked)
            )
    except (RuntimeError, ValueError, IndexError, AttributeError) as error:
        return f"without some of them the network fails ({str(error).splitlines()[0][:80]})"
    if small is None or whole is None or small.shape != whole.shape:
        return "the network's answer changes its shape"
    if float((small - whole).abs().max()) > EXACT * (1 + float(whole.abs().max())):
        return "removing and masking them give different answers"
    return ""
