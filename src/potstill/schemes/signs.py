"""What goes wrong in a game of two networks, noticed from figures that stay too small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

__all__ = ["DISCRIMINATOR", "PATIENCE", "VARIETY", "Signs"]

DISCRIMINATOR, VARIETY = "discriminator", "variety"
"""Parts of the loss that are watched."""
PATIENCE = 50
SIGNS = {
    DISCRIMINATOR: (
        0.02,
        "the discriminator wins: its loss has been below {bound:g} for {steps} steps, and the generator "
        "learns little from it; a smaller one, its spectral_norm or scheme.r1 usually helps",
    ),
    VARIETY: (
        0.05,
        "mode collapse: for {steps} steps the student's images have differed less than {bound:g} times as "
        "much as the real ones; a lower scheme.weight usually helps",
    ),
}
"""Figures that are too small where they stay below a bound for ``PATIENCE`` steps, and what it means."""


class Signs:
    """Counts for how many steps each figure has been below its bound.

    >>> signs = Signs()
    >>> said = [list(signs.notices({"variety": 0.01})) for _ in range(PATIENCE)]
    >>> said[0], said[-1][0][:13]
    ([], 'mode collapse')
    """

    def __init__(self) -> None:
        self._lasting = dict.fromkeys(SIGNS, 0)

    def notices(self, means: Mapping[str, float]) -> Iterator[str]:
        """What should be said after a phase, once for as long as it lasts.

        Args:
            means: Of the parts of one step and phase, unweighted, over all processes.
        """
        for name, (bound, words) in SIGNS.items():
            if name in means:
                self._lasting[name] = self._lasting[name] + 1 if means[name] < bound else 0
                if self._lasting[name] == PATIENCE:
                    yield words.format(bound=bound, steps=PATIENCE)
