"""A transform of the user's own: a function of images and of random numbers that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from potstill.augment.draws import Draws, Mode, Share, Transform
from potstill.errors import UserError
from potstill.randomness import under
from potstill.specs import attribute

__all__ = ["Called", "Own"]

WHERE = "augment.own"
TRIED_SAMPLES = 4
TRIED_VIEWS = 32
"""How often it must repeat itself: a random change with a chance of 0.1 a batch hides in 1 of 570 runs."""


@dataclass(frozen=True, kw_only=True)
class Own(Transform):
    """A function ``(images, draws) -> images`` of yours.

    Images are ``(N, C, H, W)`` as the data gives them; ``draws(k)`` is the k-th random number of each
    sample, ``(N,)`` float64 in [0, 1), on the CPU. There is no other randomness: views are the same for any
    batch size, order and number of processes, and after a resume.

    ```python
    def darker(images, draws):
        factor = 1 - 0.5 * draws(1)
        return (images * factor[:, None, None, None].to(images.device)).to(images.dtype)
    ```
    """

    call: str
    """``file.py:attribute`` or ``module:attribute``."""
    still: bool = False
    """It moves no pixel, so boxes, masks and paired images may stay where they are."""
    probability: Share = 1.0
    """Of a change."""

    shorthand: ClassVar[str] = "call"

    def found(self, search: Sequence[Path]) -> Called:
        """The function itself.

        Raises:
            UserError: If it is not there, or is no function.
        """
        function = attribute(self.call, search, WHERE)
        if not callable(function):
            raise UserError(WHERE, f"expected a function, got {type(function).__name__} {self.call!r}")
        return Called(function, self)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """What the function says, of a module that can be imported."""
        return self.found(()).apply(images, draws)


class Called(Transform):
    """A function at work; at its first call it must repeat itself."""

    def __init__(self, function: Callable[[Tensor, Draws], Any], config: Own) -> None:
        self.function, self.name, self.probability = function, config.call, config.probability
        self.still = config.still
        self._tried = False

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """What the function makes of the images.

        Raises:
            UserError: If it fails, gives something else than such images, or depends on anything but the
                sample and its draws.
        """
        if not self._tried:
            first = torch.arange(min(TRIED_SAMPLES, len(images)))
            self._check_repeats(images[: len(first)], draws.rows(first))
            self._tried = True
        return self._made(images, draws)

    def moves(self, height: int, width: int, draws: Draws) -> Sequence[Tensor]:
        """Nothing, if the user says so."""
        self._check_still()
        return ()

    def follow(self, pixels: Tensor, draws: Draws, mode: Mode) -> Tensor:
        """Pixels as they are, if the user says so."""
        self._check_still()
        return pixels

    def _check_still(self) -> None:
        if not self.still:
            raise UserError(
                WHERE,
                f"{self.name} changes images alone; if it moves no pixel, say {{call: {self.name}, still: "
                "true}, else boxes and masks would not fit any more",
            )

    def _made(self, images: Tensor, draws: Draws) -> Tensor:
        try:
            made = self.function(images, draws)
        except Exception as error:  # whatever the user's function raises is the user's to read
            what = f"{type(error).__name__}: {error}"
            raise UserError(WHERE, f"{self.name} failed on images {tuple(images.shape)}: {what}") from error
        if not isinstance(made, Tensor) or made.shape != images.shape or made.dtype != images.dtype:
            got = f"{tuple(made.shape)} {made.dtype}" if isinstance(made, Tensor) else type(made).__name__
            wanted = f"{tuple(images.shape)} {images.dtype}"
            raise UserError(WHERE, f"{self.name}: expected images {wanted}, got {got}")
        return made

    def _check_repeats(self, images: Tensor, draws: Draws) -> None:
        for view in range(TRIED_VIEWS):
            own = Draws(draws.index, draws.seed, view, draws.first)
            made = []
            for seed in (2 * view, 2 * view + 1):
                with under(seed):
                    made.append(self._made(images.clone(), own))
            if not torch.equal(*made):
                raise UserError(
                    WHERE,
                    f"{self.name} gave two results for the same images: its random numbers come from a "
                    "generator of its own or a global one; take them from draws(1), draws(2), ...",
                )
            alone = self._made(images[:1].clone(), own.rows(torch.tensor([0])))
            if not torch.equal(alone, made[0][:1]):
                raise UserError(
                    WHERE,
                    f"{self.name} gave another result for an image alone than in a batch of {len(images)}: "
                    "an image's view may depend on nothing but itself and its draws",
                )
