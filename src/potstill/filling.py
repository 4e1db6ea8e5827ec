"""The cache of a run: filled beforehand, finished at the end, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill import distributed
from potstill.assembly.caching import parts_of
from potstill.batch import Batch
from potstill.cache import Cached, KnownTeacher, Vault
from potstill.cache.cached import stored_of
from potstill.cache.layout import Layout
from potstill.cache.tokens import describe
from potstill.data.tokens import TokenSet
from potstill.experiment import Experiment
from potstill.measure import Measured
from potstill.schemes import BornAgain

__all__ = ["conclude_cache", "describe_cache", "fill_cache", "stored", "tell_cache"]

FILLED_BATCH = 128

Say = Callable[[str], None]


def fill_cache(experiment: Experiment, say: Say) -> None:
    """Ask the teacher for all that is missing, for every seed; several processes share the work.

    Where the disk is full, that is said, and the rest is left missing.
    """
    assert experiment.shelf is not None, "there is a cache to fill"
    experiment.shelf.writing, experiment.shelf.say = True, say
    recipe = experiment.recipe
    for seed in [recipe.seed + number for number in range(recipe.seeds)]:
        teacher = _teacher(experiment, seed)
        for view in range(experiment.shelf.config.views):
            missing = teacher.vault.missing(view)
            _fill(experiment, teacher, seed, view, missing.tolist())
            if len(missing):
                say(f"cache: seed {seed}, view {view + 1} of {experiment.shelf.config.views} is filled")
            if any(distributed.gather_objects(teacher.vault.broken)):
                return
        if not experiment.shelf.augmented:
            break


def _teacher(experiment: Experiment, seed: int) -> Cached:
    """The cached teacher with the layers that the recipe's terms look at."""
    scheme = experiment.scheme("student", seed)
    first = next(iter(scheme.generations.values())) if isinstance(scheme, BornAgain) else scheme
    objective = first.objective
    teacher = experiment.teaching(seed)
    assert isinstance(teacher, Cached), "a recipe with a cache has a cached teacher"
    return teacher.tapping(objective.teacher_paths, objective.pooled_paths) if objective.plan else teacher


def _fill(experiment: Experiment, teacher: Cached, seed: int, view: int, missing: list[int]) -> None:
    """One view of what is missing, this process's share of it."""
    distributed.barrier()  # nobody writes before all know what is missing
    mine = missing[distributed.rank() :: distributed.world_size()]
    loader, prepare = experiment.training(seed)
    size = min(FILLED_BATCH, experiment.recipe.train.batch_size) if _by_token(experiment) else FILLED_BATCH
    shares = [mine[begin : begin + size] for begin in range(0, len(mine), size)]
    for samples, target, index in loader.batches(shares, view):
        with experiment.precision.autocast(experiment.device):
            teacher(prepare(samples, target, index, view))
        if teacher.vault.broken:
            break
    distributed.barrier()


def stored(experiment: Experiment) -> bool:
    """Whether the cache holds all that the recipe's terms look at, for every seed."""
    recipe, shelf = experiment.recipe, experiment.shelf
    seeds = [recipe.seed + number for number in range(recipe.seeds)]
    return shelf is not None and all(
        _teacher(experiment, seed).vault.manifest() is not None for seed in seeds
    )


def _by_token(experiment: Experiment) -> bool:
    """Whether a sample is a row of many predictions."""
    return isinstance(experiment.splits.train, TokenSet)


# The end -------------------------------------------------------------------------------------------


def conclude_cache(
    experiment: Experiment,
    metric: float | None,
    test: NDArray[np.float32] | None,
    measured: Mapping[str, Measured],
    say: Say,
) -> None:
    """Finish the cache of a run: what little is missing is asked for, and the manifest written.

    Args:
        experiment: The loaded recipe, trained.
        metric: The teacher's, on validation.
        test: Its answers to the test part, ``(N, ...)``.
        measured: What networks cost, the ``teacher`` among them.
        say: Told what is stored.
    """
    shelf = experiment.shelf
    if shelf is None:
        return
    assert metric is not None, "what is cached has a teacher"
    assert test is not None, "which answered on the test part"
    recipe = experiment.recipe
    for seed in [recipe.seed + number for number in range(recipe.seeds if shelf.augmented else 1)]:
        answering = _teacher(experiment, seed)
        vault = answering.vault
        settled = vault.layout is None or vault.broken or vault.manifest() is not None
        if any(distributed.gather_objects(settled)):
            continue
        missing = {view: vault.missing(view).tolist() for view in range(shelf.config.views)}
        left = sum(len(rows) for rows in missing.values())
        # An epoch leaves out an incomplete last batch: no more than that of each view is asked for now.
        if 0 < left < shelf.config.views * recipe.train.batch_size:
            for view, rows in missing.items():
                _fill(experiment, answering, seed, view, rows)
            left = 0
        distributed.barrier()
        if left == 0 and distributed.is_main() and not vault.broken:
            known = KnownTeacher(
                metric=metric,
                test=test,
                measured=measured["teacher"],
                preprocessing=getattr(experiment.task, "preprocessing", {}).get("teacher"),
                parts=parts_of(experiment.splits),
            )
            vault.finish(known.save(vault))
        distributed.barrier()
    for line in tell_cache(experiment):
        say(line)


def tell_cache(experiment: Experiment) -> Iterator[str]:
    """A line a seed on what is stored: where, how large, how close, and how much is missing."""
    shelf = experiment.shelf
    assert shelf is not None, "there is a cache to tell of"
    recipe = experiment.recipe
    for seed in [recipe.seed + number for number in range(recipe.seeds if shelf.augmented else 1)]:
        vault = _teacher(experiment, seed).vault
        if vault.layout is not None:
            left = 0
            if vault.manifest() is None:
                left = sum(len(vault.missing(view)) for view in range(shelf.config.views))
            yield _line(vault, left)


def describe_cache(experiment: Experiment) -> Iterator[str]:
    """What ``--dry`` says: what is stored, or what would be, measured on some samples."""
    shelf = experiment.shelf
    if shelf is None:
        return
    told = list(tell_cache(experiment))
    yield from told
    if not told:
        teacher = _teacher(experiment, experiment.recipe.seed)
        most = experiment.recipe.train.batch_size if _by_token(experiment) else FILLED_BATCH
        count = min(most, len(experiment.splits.train))
        loader, prepare = experiment.training(experiment.recipe.seed)
        batch: Batch = prepare(*loader.read(list(range(count)), 0), 0)
        with experiment.precision.autocast(experiment.device):
            yield _foreseen(teacher, batch)


def _foreseen(teacher: Cached, batch: Batch) -> str:
    tensors, index = stored_of(teacher.ask(batch)), batch.index.cpu().numpy()
    vault = teacher.vault
    layout = vault.chosen(tensors)
    vault.header = {"bytes": layout.size + 4, "fidelity": vault.foreseen(layout, tensors, index)}
    return f"cache: empty yet; {_size(vault, vault.header, layout)}"


def _line(vault: Vault, left: int) -> str:
    assert vault.layout is not None, "an open cache has a layout"
    whole = vault.config.views * vault.samples
    filled = "full" if left == 0 else f"{(whole - left) / whole:.1%} filled"
    return f"cache: {filled}; {_size(vault, vault.figures(), vault.layout)}"


def _size(vault: Vault, figures: Mapping[str, Any], layout: Layout) -> str:
    """Where, what, how large and how close."""
    width, fidelity = figures["bytes"], figures["fidelity"]
    total = width * vault.config.views * vault.samples
    if layout.tokens is not None:
        a_token = layout.tokens.code.width(layout.tokens.words)
        return (
            f"{vault.samples} rows of {layout.tokens.length} tokens, {a_token} bytes a token "
            f"({layout.tokens.code.name}), {total / 1e6:,.1f} MB in all; {describe(fidelity)}; {vault.folder}"
        )
    kl = ", ".join(f"{value:.1e} at temperature {name}" for name, value in fidelity["kl"].items())
    return (
        f"{vault.config.views} view(s) of {vault.samples} samples, {width} bytes a view "
        f"({layout.describe()}), {total / 1e6:,.1f} MB in all; mean KL {kl}; top-1 agreement "
        f"{fidelity['agreement']:.2%} on {fidelity['measured']} answers; {vault.folder}"
    )
