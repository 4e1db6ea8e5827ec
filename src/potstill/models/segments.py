"""Cut a network's forward pass at its layers, into segments that run one after the other.

The network is traced by ``torch.export`` for any number of samples. What a later segment needs of an
earlier one is handed on, and samples can be taken out on the way. Where a network cannot be cut, the
answer says why; nothing is raised, as computing the whole network always works.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from potstill.matching.taps import Tapped
from potstill.models.folding import fold
from potstill.models.splitting import CannotCutError, Segments, split

__all__ = ["Segments", "cut"]

TOLERANCE = 1e-4


class _Tapping(nn.Module):
    """A network whose outputs are the tensors at its cuts and its own output."""

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        super().__init__()
        self.tapped = Tapped(model, paths)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        signals = self.tapped(inputs)
        return (*(signals.taps[path] for path in self.tapped.paths), signals.output)


@torch.no_grad()
def cut(model: nn.Module, paths: Sequence[str], example: Tensor, *, quick: bool = False) -> Segments:
    """Cut ``model``, in eval mode, after each of the layers ``paths``.

    The parts share the network's weights, unless they are made quick. They are run on the example, whole and
    with samples taken out on the way, and compared with the network.

    Args:
        model: Any network with one tensor as input.
        paths: Layers in the order in which they are computed.
        example: A small batch of inputs, ``(N, ...)``.
        quick: Fold batch norms into copies of the weights, and write in place (see ``folding.fold``).

    Returns:
        The segments, or the reason why there are none.

    >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> first, second = cut(network, ["1"], torch.zeros(2, 4)).parts
    >>> hidden, *needed = first(torch.zeros(5, 4))
    >>> hidden.shape, second(*needed)[0].shape
    (torch.Size([5, 3]), torch.Size([5, 2]))
    """
    modes = {module: module.training for module in model.modules()}
    example = example if len(example) > 1 else torch.cat([example, example])
    try:
        traced = _traced(model.eval(), paths, example)
        if quick:
            fold(traced)
        segments = split(traced)
        _verify(model, segments, example)
        return segments
    except CannotCutError as error:
        return Segments((), (), str(error))
    finally:
        for module, training in modes.items():
            module.training = training


def _traced(model: nn.Module, paths: Sequence[str], example: Tensor) -> fx.GraphModule:
    tapping = _Tapping(model, paths)
    try:
        with _quiet():
            program = torch.export.export(
                tapping, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
            )
            return program.module(check_guards=False)
    except Exception as error:  # whatever a network does that cannot be traced, it can still be run whole
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise CannotCutError(
            f"its forward pass cannot be traced ({type(error).__name__}: {line:.200})"
        ) from error
    finally:
        tapping.tapped.remove()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on its own workings are nobody's business; what fails is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        nowhere = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _verify(model: nn.Module, segments: Segments, example: Tensor) -> None:
    """Compare with the network itself, the last sample taken out at the first cut, then the first."""
    expected = Tapped(model)(example).output
    for taken in (0, 1):
        rows = torch.arange(len(example), device=example.device)
        needed: tuple[Tensor, ...] = (example,)
        for number, part in enumerate(segments.parts):
            output, *rest = part(*needed)
            if number < len(segments.axes):
                kept = torch.arange(len(rows) - taken * (len(rows) > 1), device=rows.device)
                kept = kept if number % 2 == 0 else kept + (len(rows) - len(kept))
                rows, needed = rows[kept], segments.keep(number, rest, kept)
        spread = max(float(expected.max() - expected.min()), 1e-6)
        difference = float((output - expected[rows]).abs().max()) / spread
        if not difference <= TOLERANCE:
            how = "with samples taken out on the way " if taken else ""
            raise CannotCutError(
                f"in segments it answers otherwise {how}(relative difference {difference:.1e})"
            )
