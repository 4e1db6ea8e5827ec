"""What stands for a network's stages: last maps of each size, blocks of tokens, its last hidden vector."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from potstill.errors import UserError
from potstill.matching.recording import LayerShape
from potstill.matching.taps import INPUT, NO_ATTENTION

__all__ = ["attention", "blocks", "family", "hidden", "pooled", "projections", "stages"]

PROJECTIONS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
"""What networks of the transformers library call their queries, keys and values."""


def stages(layers: Sequence[LayerShape]) -> list[LayerShape]:
    """The last map of each size on the way down; a module ends after its children, so whole stages win.

    Of a network whose maps only grow, as those of a generator of noise do, on the way up, less its image.
    """
    maps = _outputs(layers, "maps")
    if (growing := _growing(layers, maps)) is not None:
        return growing
    found: list[LayerShape] = []
    for layer in maps:
        height, width = layer.shape[2:]
        if height * width == 1:  # pooled away, or a gate such as squeeze-and-excite
            continue
        if found and found[-1].shape[2:] == (height, width):
            found[-1] = layer
        elif not found or (height <= found[-1].shape[2] and width <= found[-1].shape[3]):
            found.append(layer)
    ends = [_before_shrinking(*sizes, layers, maps) for sizes in itertools.pairwise(found)]
    return [*ends, *found[-1:]]


def _growing(layers: Sequence[LayerShape], maps: Sequence[LayerShape]) -> list[LayerShape] | None:
    """The last map of each size, where sizes grow and never shrink up to an image; ``None`` elsewhere."""
    areas = [layer.shape[2] * layer.shape[3] for layer in maps]
    if not maps or areas != sorted(areas) or areas[0] == areas[-1] or layers[-1].kind != "maps":
        return None
    inside = [layer for layer in maps if layer.shape != layers[-1].shape]
    return list({layer.shape[2:]: layer for layer in inside}.values())


def _before_shrinking(
    stage: LayerShape, after: LayerShape, layers: Sequence[LayerShape], maps: Sequence[LayerShape]
) -> LayerShape:
    """The last map of the stage's size before the outermost module that takes it to the next size.

    The stage itself may be the inside of that module: a bottleneck block shrinks in its second layer.
    """
    outputs = {layer.path: layer.shape[2:] for layer in layers if layer.kind == "maps"}
    shrinking = [
        layer
        for layer in layers
        if layer.path.endswith(INPUT)
        and layer.shape[2:] == stage.shape[2:]
        and outputs.get(layer.path.removesuffix(INPUT)) == after.shape[2:]
    ]
    for module in sorted(shrinking, key=lambda layer: layer.path.count(".")):
        before = [m for m in maps if m.shape[2:] == stage.shape[2:] and m.ended < module.began]
        if before:
            return before[-1]
    return stage


def blocks(layers: Sequence[LayerShape]) -> list[LayerShape]:
    """The repeated blocks of a token network: the numbered modules of equal shape that hold most others."""
    groups: dict[tuple[str, tuple[int, ...]], list[LayerShape]] = {}
    tokens = _outputs(layers, "tokens")
    for layer in tokens:
        numbered = re.fullmatch(r"(.*?)\d+", layer.path)
        if numbered:
            groups.setdefault((numbered[1], layer.shape), []).append(layer)
    if not groups:
        return tokens

    def held(group: Sequence[LayerShape]) -> tuple[int, int]:
        inside = tuple(f"{layer.path}." for layer in group)
        return sum(f"{layer.path}.".startswith(inside) for layer in tokens), -group[0].path.count(".")

    return max(groups.values(), key=held)


def attention(layers: Sequence[LayerShape], role: str, where: str) -> list[LayerShape]:
    """Attention by depth: in what modules give, else their own output (a dropout of it)."""
    found = [layer for layer in layers if layer.kind == "attention" and layer.stable]
    lengths = {layer.shape[1] for layer in layers if layer.kind == "tokens"}
    found = found or [
        layer
        for layer in _outputs(layers, "maps")
        if layer.shape[2] == layer.shape[3] and layer.shape[2] in lengths
    ]
    if not found:
        raise UserError(where, f"auto finds no attention (N, heads, L, L) in the {role}; {NO_ATTENTION}")
    return found


def projections(layers: Sequence[LayerShape]) -> list[str]:
    """Paths of queries, keys and values of the last layer, where each is a module of its own."""
    paths = [layer.path for layer in _outputs(layers, "tokens")]
    for names in PROJECTIONS:
        ends = [[path for path in paths if path.endswith(f".{name}")] for name in names]
        if all(ends):
            return [found[-1] for found in ends]
    return []


def hidden(layers: Sequence[LayerShape]) -> str:
    """The last vector that is not the network's output (outputs of wrappers around it share its shape)."""
    vectors = _outputs(layers, "vector")
    inside = [layer for layer in vectors[:-1] if layer.shape != vectors[-1].shape]
    return (inside or vectors[:-1])[-1].path


def pooled(layers: Sequence[LayerShape]) -> str:
    """What the head takes in: the input of the last layer that gives the output, where it is a vector.

    Of modules around that layer whose input has its shape the outermost is meant: before any dropout.
    """
    output = layers[-1].shape
    heads = [
        layer
        for layer in layers
        if layer.path.endswith(INPUT)
        and layer.stable
        and layer.kind == "vector"
        and layer.shape[0] == output[0]
        and layer.shape != output
        and any(other.path == layer.path.removesuffix(INPUT) and other.shape == output for other in layers)
    ]
    if heads:
        last = max(heads, key=lambda layer: layer.began)
        return min((head for head in heads if head.shape == last.shape), key=lambda head: head.began).path
    for kind in ("maps", "tokens"):
        if found := (stages(layers) if kind == "maps" else _outputs(layers, kind)):
            return found[-1].path
    return hidden(layers)


def family(layers: Sequence[LayerShape], kinds: Sequence[str]) -> str | None:
    """The kind that decides the pairing: of maps and tokens the one computed last, else vectors."""
    usable = {kind for kind in kinds if (stages(layers) if kind == "maps" else _outputs(layers, kind))}
    spatial = [layer.kind for layer in layers if layer.kind in usable - {"vector"} and layer.stable]
    if spatial:
        return spatial[-1]
    return "vector" if "vector" in usable and len(_outputs(layers, "vector")) > 1 else None


def _outputs(layers: Sequence[LayerShape], kind: str) -> list[LayerShape]:
    """What can be tapped: outputs with one row a sample (windows and heads are folded into the batch)."""
    return [
        layer
        for layer in layers
        if layer.kind == kind
        and layer.stable
        and layer.shape[0] == layers[0].shape[0]
        and not layer.path.endswith(INPUT)
        and not (kind == "maps" and _channels_last(layer.shape, layers[0].shape))
    ]


def _channels_last(shape: tuple[int, ...], example: tuple[int, ...]) -> bool:
    """Whether maps are ``(N, H, W, C)``, as Swin has them inside: square, as the images are."""
    return len(example) == 4 and example[2] == example[3] and shape[1] == shape[2] != shape[3]
