"""Early exits for any classifier: small heads on tapped layers, nothing in the network rewritten.

Each exit brings its layer to the shape of the deepest features and answers from there, so that it can
learn from the deepest answer and from the deepest features (see ``schemes.deep_supervision``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from potstill.batch import Signals
from potstill.errors import UserError, nearest
from potstill.matching.pairing import auto_pairs
from potstill.matching.recording import LayerShape, record
from potstill.matching.taps import INPUT, Tapped
from potstill.models.exit_heads import Exit, Heads, pooled

__all__ = ["EXIT", "FEATURE", "WithExits"]

EXIT = "exit:"
FEATURE = "feature:"
TOKEN_EXITS = 4  # of a network of equal blocks, exits stand at the ends of its quarters
FIRST_SHARE = 0.05  # before this share of the layers with weights, there is nothing to answer from


class WithExits(nn.Module):
    """A classifier and its exits; all of them answer in one forward pass.

    Args:
        model: Any classifier with one tensor as input and logits ``(N, classes)`` as output.
        exits: Paths of layers, or ``auto``: the ends of all stages but the last (the ends of the quarters
            where the blocks are all alike, as in a transformer).
        example: A small batch of inputs, ``(N, ...)``.
        heads: Convolutions of exits on maps: ``separable``, or ``residual``, which has several times the
            parameters and learns more.
        blocks: Residual blocks at each size that a head passes through, the deepest last; see
            :class:`~potstill.models.exit_heads.Exit`.
        where: Dotted key for messages.

    Attributes:
        paths: Where the exits are, in the order in which they are computed.
        deepest: Path of the deepest features.

    Raises:
        UserError: If a path is unknown, never runs, comes after the deepest features, or names the same
            place as another.

    >>> stages = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, 2), nn.Conv2d(8, 8, 3, 1, 1)
    >>> network = nn.Sequential(*stages, nn.Flatten(), nn.Linear(32, 3))
    >>> signals = WithExits(network, ["0"], torch.zeros(2, 1, 7, 7))(torch.zeros(2, 1, 7, 7))
    >>> {key: tuple(tensor.shape) for key, tensor in signals.taps.items()}
    {'exit:0': (2, 3), 'feature:0': (2, 8, 2, 2), 'feature:2': (2, 8, 2, 2)}
    """

    def __init__(
        self,
        model: nn.Module,
        exits: str | Sequence[str],
        example: Tensor,
        *,
        heads: Heads = "separable",
        blocks: Sequence[int] = (1,),
        where: str = "exits",
    ) -> None:
        super().__init__()
        layers = record(model, example)
        self.deepest, stages = _stages(layers, where)
        if isinstance(exits, str) and exits != "auto":
            raise UserError(where, f"expected 'auto' or a list of layers, got '{exits}'")
        chosen = _automatic(model, layers, stages, where) if isinstance(exits, str) else list(exits)
        shapes = _checked(model, layers, chosen, self.deepest, where)
        self.paths = tuple(shapes)
        self.tapped = Tapped(model, [*self.paths, self.deepest], role=where)
        classes = _check_places(self.tapped, example, where)
        deepest = next(layer.shape for layer in layers if layer.path == self.deepest)
        self.exits = nn.ModuleList(
            Exit(shape, deepest, classes, heads=heads, blocks=blocks, where=f"{where}: layer '{path}'")
            for path, shape in shapes.items()
        ).to(example.device)

    @property
    def model(self) -> nn.Module:
        """The classifier itself."""
        return self.tapped.model

    def forward(self, inputs: Tensor, *, whole: bool = True) -> Signals:
        """Answer at every exit.

        Args:
            inputs: What the classifier takes, ``(N, ...)``.
            whole: Otherwise the network runs as far as its last exit, whose logits are then the output.

        Returns:
            The deepest logits as output; as taps ``exit:<path>`` the logits ``(N, classes)`` of each exit,
            ``feature:<path>`` its bottleneck and, under the path of the deepest layer, the deepest
            features.
        """
        signals: Signals = self.tapped(inputs, until=None if whole else self.paths[-1])
        taps: dict[str, Tensor] = {}
        for path, head in zip(self.paths, self.exits, strict=True):
            taps[EXIT + path], taps[FEATURE + path] = head(signals.taps[path])
        if not whole:
            return Signals(taps[EXIT + self.paths[-1]], taps)
        deepest = signals.taps[self.deepest]
        taps[FEATURE + self.deepest] = deepest if deepest.dim() == 4 else pooled(deepest)
        return Signals(signals.output, taps)


def _stages(layers: Sequence[LayerShape], where: str) -> tuple[str, list[str]]:
    """The deepest features, and the ends of all stages (or blocks) up to them."""
    ends = [pair.student for pair in auto_pairs(layers, layers, where=where)]
    return ends[-1], ends


def _automatic(
    model: nn.Module, layers: Sequence[LayerShape], stages: Sequence[str], where: str
) -> list[str]:
    known = {layer.path: layer for layer in layers}
    weights = [
        layer.ended
        for layer in layers
        if layer.path in dict(model.named_modules())
        and next(model.get_submodule(layer.path).parameters(recurse=False), None) is not None
    ]
    chosen = list(stages[:-1])
    if known[stages[-1]].kind == "tokens":
        count = len(stages)
        places = {-(-count * part // TOKEN_EXITS) for part in range(1, TOKEN_EXITS)} - {count}
        chosen = [stages[place - 1] for place in sorted(places)]
    chosen = [
        path
        for path in chosen
        if sum(ended <= known[path].ended for ended in weights) >= FIRST_SHARE * len(weights)
    ]
    if not chosen:
        raise UserError(where, "auto finds no stage before the last features; list the layers")
    return chosen


def _checked(
    model: nn.Module, layers: Sequence[LayerShape], chosen: Sequence[str], deepest: str, where: str
) -> dict[str, tuple[int, ...]]:
    """Shapes of the chosen layers in the order in which they are computed."""
    known = {layer.path: layer for layer in layers if not layer.path.endswith(INPUT)}
    names = [name for name, _ in model.named_modules() if name]
    if not chosen:
        raise UserError(where, "expected at least one layer, got an empty list")
    for path in chosen:
        if path not in names:
            raise UserError(where, f"no layer '{path}'{nearest(path, names)}")
        if path not in known:
            raise UserError(where, f"layer '{path}' never ran on the example, or gave no tensor")
        if not known[path].stable:
            raise UserError(
                where,
                f"layer '{path}' cannot have an exit: it runs more than once, or what follows overwrites its "
                f"tensor in place; choose a layer after it",
            )
        if known[path].ended >= known[deepest].ended:
            raise UserError(
                where,
                f"layer '{path}' is at or after the last features ('{deepest}'): leaving there would save "
                f"nothing; choose an earlier layer",
            )
        if chosen.count(path) > 1:
            raise UserError(where, f"two exits at one place: '{path}' is listed twice")
    return {path: known[path].shape for path in sorted(chosen, key=lambda path: known[path].ended)}


@torch.no_grad()
def _check_places(tapped: Tapped, example: Tensor, where: str) -> int:
    """Refuse two paths that give the very same tensor; the number of classes."""
    modes = {module: module.training for module in tapped.modules()}
    try:
        signals: Signals = tapped.eval()(example)
    finally:
        for module, training in modes.items():
            module.training = training
    places: dict[int, str] = {}
    for path, tensor in reversed(list(signals.taps.items())):  # the deepest first
        other = places.setdefault(id(tensor), path)
        if other != path:
            raise UserError(where, f"two exits at one place: '{path}' gives the very tensor of '{other}'")
    if signals.output.dim() != 2:
        raise UserError(where, f"exits need logits (N, classes), got an output {tuple(signals.output.shape)}")
    return int(signals.output.shape[1])
