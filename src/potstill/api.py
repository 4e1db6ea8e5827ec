"""Distillation of modules and data sets in memory: the same run, called from Python or a notebook."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from potstill import distributed
from potstill.assembly.images import image_task
from potstill.assembly.load import assemble, search_path
from potstill.assembly.materials import Material, made
from potstill.config import Recipe, check_effect, from_mapping
from potstill.data.load import complete
from potstill.data.own import from_datasets
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.folder import RunFolder
from potstill.loaded import IN_MEMORY
from potstill.models.preprocessing import Preprocessing, preprocessing_of
from potstill.run import Echo, Result, execute, finished
from potstill.schemes.settings import others_of

__all__ = ["distill"]


def distill(
    student: nn.Module | Callable[[], nn.Module],
    teacher: nn.Module | None = None,
    *,
    train: Dataset[Any],
    validation: Dataset[Any] | None = None,
    test: Dataset[Any] | None = None,
    scheme: str | Mapping[str, Any] = "offline",
    distill: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    cache: Mapping[str, Any] | None = None,
    epochs: float | None = None,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | Mapping[str, Preprocessing] | None = None,
    seeds: int = 1,
    seed: int = 0,
    out: str | Path = "runs/distill",
    resume: bool = False,
    control: bool = True,
    echo: Echo = print,
    **train_options: Any,
) -> Result:
    """Distil ``teacher`` into ``student`` on data sets in memory.

    Args:
        student: The student, or a function that makes a fresh one. A module keeps its given weights as
            the start of every seed; a function starts each seed anew, which measures more.
        teacher: The trained teacher; it is copied and never changed. Schemes in which networks teach each
            other have none.
        train: Map-style data set of ``(image, label)``: PIL, uint8 or float tensors ``(C, H, W)``.
        validation: For choices during training; cut from ``train`` when absent.
        test: Read once at the end; ``validation`` cannot serve for it, so it is cut from ``train`` too.
        scheme: Who teaches whom, as in a recipe: ``"mutual"`` or ``{"kind": "mutual", "peers": 3}``.
        distill: What is matched, as in a recipe: ``{"kl": {"weight": 0.9, "temperature": 4}}``.
        augment: As in a recipe: ``{"flip": 0.5, "crop": 4, "mixup": 0.2}``.
        cache: Keep the teacher's answers on disk, as in a recipe: ``{"views": 8, "path": "cache"}``.
        epochs: Length of each training.
        class_names: Names in the order of the labels; numbers by default.
        preprocessing: Normalisation for both networks or ``{"teacher": ..., "student": ...}``; by
            default uint8 images are normalised as the networks say and float tensors are left alone.
        seeds: Runs of each arm.
        seed: Seed of the first run.
        out: The run folder.
        resume: Go on with the run in ``out``.
        control: Also train the same student without distillation.
        echo: Where lines of text go.
        **train_options: Any other key of a recipe's ``train`` (``learning_rate=0.05``, ``batch_size=64``).

    Returns:
        The result: gain, verdict, paths and the trained student.

    Raises:
        UserError: For anything that does not fit.

    Example:
        >>> import torch, tempfile, potstill
        >>> from torch.utils.data import TensorDataset
        >>> images, labels = torch.randn(60, 1, 4, 4), torch.arange(60) % 2
        >>> images[labels == 1] += 1.0
        >>> net = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> teacher = net()
        >>> _ = teacher[1].weight.data.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))
        >>> _ = teacher[1].bias.data.copy_(torch.tensor([8.0, -8.0]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = potstill.distill(net, teacher, train=TensorDataset(images, labels), epochs=1,
        ...                               batch_size=16, out=folder, echo=lambda line: None)
        >>> result.verdict in ("better", "same", "worse")
        True
    """
    distributed.start()
    raw: dict[str, Any] = {
        "data": {"kind": "own", "path": IN_MEMORY},
        "augment": dict(augment or {}),
        "scheme": scheme if isinstance(scheme, str) else dict(scheme),
        "student": {"model": f"{IN_MEMORY} {_name(student)}"},
        "train": {**({} if epochs is None else {"epochs": epochs}), **train_options},
        "seeds": seeds,
        "seed": seed,
    }
    if teacher is not None:
        raw["teacher"] = {
            "model": f"{IN_MEMORY} {type(teacher).__name__}",
            **({} if cache is None else {"cache": dict(cache)}),
        }
    if distill is not None:
        raw["distill"] = dict(distill)
    if isinstance(student, nn.Module):
        raw["notes"] = [
            "Every seed starts from the same given weights of the student: only the data order differs."
        ]
    recipe = from_mapping(raw)
    check_effect(recipe)
    folder = RunFolder(Path(out).resolve())
    if resume and folder.finished and folder.report.is_file():
        folder.check_same(recipe)
        return finished(folder, _fresh(student)())
    experiment = _experiment(recipe, student, teacher, train, validation, test, class_names, preprocessing)
    return execute(experiment, folder, resume=resume, control=control, echo=echo)


def _experiment(
    recipe: Recipe,
    student: nn.Module | Callable[[], nn.Module],
    teacher: nn.Module | None,
    train: Dataset[Any],
    validation: Dataset[Any] | None,
    test: Dataset[Any] | None,
    class_names: Sequence[str] | None,
    preprocessing: Preprocessing | Mapping[str, Preprocessing] | None,
) -> Experiment:
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise UserError("teacher", f"expected a torch.nn.Module, got {type(teacher).__name__}")
    parts = {"train": train, "validation": validation, "test": test}
    splits = complete(from_datasets(parts, class_names, recipe.data.size, ""), recipe.data)
    fresh = _fresh(student)
    first = fresh()
    if preprocessing is None:
        views = _preprocessing(recipe, first, teacher, splits.train.channels, floats=splits.train.floats)
    elif isinstance(preprocessing, Preprocessing):
        views = {"student": preprocessing, "teacher": preprocessing}
    else:
        views = dict(preprocessing)
    for role in ("student", "teacher") if teacher is not None else ("student",):
        if role not in views:
            raise UserError(f"preprocessing.{role}", f"missing; got {sorted(views)}")
    task = image_task(recipe, splits, views)
    classes = len(splits.train.class_names)
    others = tuple(
        functools.partial(made, config, search_path(None), f"scheme.networks.{place}", num_classes=classes)
        for place, config in enumerate(others_of(recipe.scheme))
    )
    return assemble(
        recipe,
        Material(splits=splits, task=task, teacher=teacher, student=first, fresh=fresh, others=others),
    )


def _preprocessing(
    recipe: Recipe, student: nn.Module, teacher: nn.Module | None, channels: int, *, floats: bool
) -> dict[str, Preprocessing]:
    """Float tensors count as normalised already; integer images get what the networks ask for."""
    if floats:
        same = Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels)
        return {"student": same, "teacher": same}
    if teacher is None or recipe.teacher is None:
        return {"student": preprocessing_of(student, recipe.student, channels, None)}
    of_teacher = preprocessing_of(teacher, recipe.teacher, channels, None, where="teacher")
    return {"student": preprocessing_of(student, recipe.student, channels, of_teacher), "teacher": of_teacher}


def _name(student: object) -> str:
    return (
        type(student).__name__ if isinstance(student, nn.Module) else getattr(student, "__name__", "function")
    )


def _fresh(student: nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    if isinstance(student, nn.Module):
        start = copy.deepcopy(student)
        return lambda: copy.deepcopy(start)
    if not callable(student):
        raise UserError("student", f"expected a torch.nn.Module or a function, got {type(student).__name__}")
    made = student()
    if not isinstance(made, nn.Module):
        raise UserError(
            "student", f"expected a function that makes a torch.nn.Module, got {type(made).__name__}"
        )
    return student
