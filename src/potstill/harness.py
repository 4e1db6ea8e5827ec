"""Public benchmarks of language models: lm-evaluation-harness, called where it is installed.

It brings its tasks, their data and their metrics; here networks are handed over and figures read.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from potstill.errors import UserError, nearest
from potstill.losses import Range
from potstill.models.lora import merged
from potstill.models.pretrained import quiet_library
from potstill.randomness import under
from potstill.specs import find

__all__ = ["EvaluationConfig", "Figure", "ask_harness", "check_networks", "check_tasks"]

WHERE = "evaluation.harness"
NO_METRIC = ("alias", "name", "sample_len", "sample_count")
UNFILTERED = "none"
FILES = (".yaml", ".yml")
FAILURES = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError)
"""What the harness raises where data cannot be had, or a task needs something that is not there."""

Figures = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What language models are measured on beside the test part, once all training is over."""

    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness (``lm-eval ls tasks`` lists them), or YAML files of tasks."""
    limit: Annotated[int, Range(least=1)] | None = None
    """Only the first so many samples of each task."""
    batch_size: Annotated[int, Range(least=1)] = 8
    """Samples that are asked at once."""


@dataclass(frozen=True)
class Figure:
    """What a network reaches on one task, by one of its metrics.

    Attributes:
        value: The metric, as the harness computes it.
        error: Its standard error; ``None`` where the harness gives none.
        samples: Samples of the task that were asked; ``None`` for a group of tasks.
    """

    value: float
    error: float | None
    samples: int | None


def check_tasks(config: EvaluationConfig, search: Sequence[Path]) -> None:
    """Find the tasks and load their data, so that what is missing is said before anything is trained.

    Args:
        config: The recipe's ``evaluation``.
        search: Where relative paths of task files are looked up.

    Raises:
        UserError: If the harness is not installed, knows no such task, or cannot load one, or if a task runs
            code that a network wrote.
    """
    if not config.harness:
        return
    manager = _manager()
    names = _names(config, search)
    for name in names:
        if not name.endswith(FILES) and name not in manager.all_tasks:
            raise UserError(WHERE, f"no task {name!r}{nearest(name, manager.all_tasks)}")
    with _quiet():
        try:
            loaded = manager.load(names)["tasks"]
        except FAILURES as error:
            raise UserError(WHERE, f"cannot load {', '.join(names)}: {error}") from error
    for name, task in loaded.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(WHERE, f"{name} runs code that a network wrote, which is not done here")


def check_networks(config: EvaluationConfig, networks: Mapping[str, nn.Module]) -> None:
    """Refuse networks that the harness cannot ask.

    Raises:
        UserError: If one of them, by role, is none of transformers.
    """
    from transformers import PreTrainedModel

    for role, network in networks.items():
        if config.harness and not isinstance(network, PreTrainedModel):
            kind = type(network).__name__
            raise UserError(WHERE, f"needs networks of transformers, and {role}.model is a {kind}")


def ask_harness(
    networks: Mapping[str, nn.Module],
    tokenizer: Any,
    config: EvaluationConfig,
    search: Sequence[Path],
    seed: int,
) -> dict[str, Figures]:
    """What each network reaches on each task, in figures of the harness.

    Args:
        networks: Causal language models of transformers, by name.
        tokenizer: That of all of them.
        config: The recipe's ``evaluation``.
        search: Where relative paths of task files are looked up.
        seed: Of the harness's own draws, such as which samples stand before a question.

    Returns:
        By network, task (or group of tasks) and metric a :class:`Figure` as a mapping; empty where the recipe
        names no task.

    Raises:
        UserError: If the harness fails.
    """
    if not config.harness:
        return {}
    names, manager = _names(config, search), _manager()
    return {
        arm: _asked(network, tokenizer, config, names, manager, seed) for arm, network in networks.items()
    }


def _asked(
    network: nn.Module, tokenizer: Any, config: EvaluationConfig, names: list[str], manager: Any, seed: int
) -> Figures:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    training = network.training
    with _quiet(), under(seed):
        try:
            whole = merged(network)
            own = copy.deepcopy(tokenizer)  # it is given a padding token
            found = simple_evaluate(
                model=HFLM(pretrained=whole, tokenizer=own, batch_size=config.batch_size),
                tasks=names,
                limit=config.limit,
                task_manager=manager,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except FAILURES as error:
            raise UserError(
                WHERE, f"lm-evaluation-harness failed: {type(error).__name__}: {error}"
            ) from error
        finally:
            network.train(training)
    counts = found.get("n-samples", {})
    rows = {**found["results"], **found.get("groups", {})}
    return {task: _figures(row, counts.get(task, {}).get("effective")) for task, row in rows.items()}


def _figures(row: Mapping[str, Any], samples: int | None) -> dict[str, dict[str, Any]]:
    """The metrics of a task, ``{"acc,none": 0.4, "acc_stderr,none": 0.01}``, each with its standard error."""
    figures = {}
    for key, value in row.items():
        metric, _, filtered = key.partition(",")
        if key in NO_METRIC or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = row.get(f"{metric}_stderr,{filtered}")
        known = isinstance(error, int | float) and not math.isnan(error)
        name = metric if filtered in ("", UNFILTERED) else f"{metric}, {filtered}"
        figures[name] = asdict(Figure(float(value), error if known else None, samples))
    return figures


def _names(config: EvaluationConfig, search: Sequence[Path]) -> list[str]:
    """The tasks as the harness takes them: files by their whole path."""
    return [str(find(name, search, WHERE)) if name.endswith(FILES) else name for name in config.harness]


def _manager() -> Any:
    """The harness's index of tasks; there are thousands, which takes seconds to read."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        missing = "lm-evaluation-harness" if (error.name or "").startswith("lm_eval") else error.name
        raise UserError(WHERE, f"{missing} is not installed: pip install 'potstill[harness]'") from error
    with _quiet():
        return TaskManager()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hush the harness's and transformers' notes on their own workings; bars stay, as tasks take long."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with quiet_library():
            yield
    finally:
        log.setLevel(level)
