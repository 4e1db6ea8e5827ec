"""Batches in an order that is a pure function of (seed, epoch), for any number of workers and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from potstill.data.dataset import Rows, SampleSet
from potstill.errors import UserError
from potstill.randomness import reseed, under

__all__ = ["Loader"]

WATCHED = 16
"""Samples that are read again before each epoch, to see whether the data changes under the run."""

Partners = Callable[[Tensor, int], Tensor]
"""From positions and the number of an epoch to positions that are read beside them."""


def _as_is(rows: Any) -> Any:
    """Sets answer with whole batches: there is nothing left to collate."""
    return rows


BUCKET_BATCHES = 32
"""Among so many batches of an order samples are sorted by length."""


def _bucketed(
    order: NDArray[np.int64], lengths: NDArray[np.int64], size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The order in stretches sorted by length, whose batches are then mixed anew.

    What fills no whole batch stays at the end.
    """
    whole, stretch = len(order) // size * size, BUCKET_BATCHES * size
    parts = [order[start : min(start + stretch, whole)] for start in range(0, whole, stretch)]
    alike = np.concatenate([order[:0], *(part[np.argsort(lengths[part], kind="stable")] for part in parts)])
    mixed = rng.permutation(alike.reshape(-1, size))
    return np.concatenate([mixed.reshape(-1), order[whole:]])


class _Reading(Dataset[Any]):
    """A set as worker processes read it.

    A user's error travels as a value, with its message whole. What a user's own set draws at random depends
    on the batch alone, not on which process reads it or on what that process read before a resume.
    """

    def __init__(self, dataset: SampleSet, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitems__(self, indices: Sequence[int]) -> Rows | UserError:
        seed = int(np.random.SeedSequence([self.seed, *indices]).generate_state(1)[0])
        reseed(seed)
        try:
            return self.dataset.__getitems__(indices)
        except UserError as error:
            return error


class Loader:
    """The batches of a data set, epoch by epoch.

    All ranks walk the same global batches and each takes its own slice, so two ranks with half a batch
    each see what one rank with the whole batch sees.

    Args:
        dataset: What to read.
        batch_size: Size of the global batch.
        seed: Seed of the order.
        shuffle: Draw a new order each epoch; else go through the set in order.
        drop_last: Leave out an incomplete last batch.
        workers: Processes that decode; sets in memory are read directly.
        rank: Number of this process.
        world_size: Number of processes.
        partners: Which samples a batch needs beside its own, where images are mixed.

    Raises:
        UserError: If no batch comes about, or ranks cannot share one evenly in training.

    Example:
        >>> from potstill.data.arrays import ArraySet
        >>> images, labels = np.zeros((6, 2, 2), np.uint8), np.arange(6) % 2
        >>> loader = Loader(ArraySet(images, labels, ("a", "b"), "example"), batch_size=2, seed=0)
        >>> [rows[2].tolist() for rows in loader.epoch(0)] == [rows[2].tolist() for rows in loader.epoch(0)]
        True
    """

    def __init__(
        self,
        dataset: SampleSet,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        partners: Partners | None = None,
    ) -> None:
        if drop_last and batch_size > len(dataset):
            raise UserError(
                "train.batch_size", f"must be at most the {len(dataset)} samples, got {batch_size}"
            )
        if drop_last and batch_size % world_size:
            raise UserError(
                "train.batch_size", f"must be a multiple of the {world_size} processes, got {batch_size}"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.workers = workers
        self.rank = rank
        self.world_size = world_size
        self.partners = partners
        self._first: tuple[int, str] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Number of global batches."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Positions in the order of ``epoch``, the same on every rank.

        Samples of different lengths come in batches of like lengths, which change from epoch to epoch.
        """
        count = len(self.dataset)
        lengths = self.dataset.lengths
        if not self.shuffle:
            return np.arange(count) if lengths is None else np.argsort(lengths, kind="stable")
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(count)
        return order if lengths is None else _bucketed(order, lengths, self.batch_size, rng)

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Rows]:
        """This rank's share of the batches of an epoch.

        Args:
            number: Number of the epoch, from 0.
            start_batch: Batch to start with; those before are skipped without being read.

        Yields:
            Samples, targets and positions ``(n,)``; where images are mixed, the partners' images and labels
            come behind the batch's own. Without ``drop_last`` a rank may get no
            share of the last batch, and then fewer batches.

        Raises:
            UserError: If a worker process dies, or the data is not what it was.
        """
        self.check_unchanged(number)
        order = self.order(number)
        shares = [self._share(order, batch) for batch in range(start_batch, self.batches_per_epoch)]
        yield from self.batches([share for share in shares if share], number)

    def batches(self, shares: Sequence[list[int]], epoch: int) -> Iterator[Rows]:
        """The samples at each of ``shares``, as :meth:`epoch` yields them."""
        if self.dataset.in_memory or self.workers == 0:
            yield from (self.read(share, epoch) for share in shares)
        else:
            wanted = (self._with_partners(share, epoch) for share in shares)
            for share, (samples, targets, index) in zip(shares, self._decoded(wanted, epoch), strict=True):
                yield samples, targets, index[: len(share)]

    def check_unchanged(self, epoch: int) -> None:
        """Compare some samples with what they were when they were first looked at.

        Views and a teacher's answers belong to a sample: it must be the same in every epoch.

        Raises:
            UserError: If any of 16 evenly spaced samples has changed.
        """
        with under(epoch):  # what a user's set draws from global generators differs between epochs
            found = self.dataset.fingerprint(WATCHED)
        first, known = self._first = self._first or (epoch, found)
        if found != known:
            raise UserError(
                "data",
                f"samples that were read again before epoch {epoch + 1} are not what they were before epoch "
                f"{first + 1}: files that someone changes, or random changes in the data set's own code "
                "(name them under augment.own, so that both networks and every arm see the same view)",
            )

    def read(self, positions: list[int], epoch: int) -> Rows:
        """One batch as :meth:`epoch` yields them."""
        samples, targets, index = self.dataset.__getitems__(self._with_partners(positions, epoch))
        return samples, targets, index[: len(positions)]

    def _with_partners(self, positions: list[int], epoch: int) -> list[int]:
        if self.partners is None:
            return positions
        return positions + self.partners(torch.tensor(positions), epoch).tolist()

    def _share(self, order: NDArray[np.int64], batch: int) -> list[int]:
        rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        cuts = np.linspace(0, len(rows), self.world_size + 1).round().astype(int)
        mine: list[int] = rows[cuts[self.rank] : cuts[self.rank + 1]].tolist()
        return mine

    def _decoded(self, shares: Iterable[list[int]], epoch: int) -> Iterator[Rows]:
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        loader: DataLoader[Any] = DataLoader(
            _Reading(self.dataset, seed),
            batch_sampler=shares,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),  # else it draws from the run's own randomness
        )
        try:
            for rows in loader:
                if isinstance(rows, UserError):
                    raise rows
                yield rows
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):  # what the user's set raised in one
                raise
            raise UserError(
                "data.workers",
                f"a process that decodes images died ({str(error).splitlines()[0]}); if it was killed for "
                "memory, use fewer workers or smaller images",
            ) from error
