"""``potstill demo``: train a teacher on digits that come with the package, distil it, report.

Everything is the ordinary machinery: the loop trains the teacher from labels alone, then the shipped
recipe ``demo`` runs as any recipe does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch

from potstill.assembly.load import load_experiment
from potstill.config import Recipe, load
from potstill.data import load_data
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.folder import RunFolder
from potstill.matching.objective import Objective
from potstill.measure import Stopwatch
from potstill.models import build, save_weights
from potstill.models.preprocessing import preprocessing_of
from potstill.run import Result, execute, finished
from potstill.schemes import Offline
from potstill.tasks import Classification
from potstill.train import TrainConfig, train
from potstill.train.observe import Many
from potstill.train.precision import choose

__all__ = ["demo"]

Echo = Callable[[str], None]

TEACHER_EPOCHS = 40
BATCH_SIZE = 64
OURS = {"teacher", "run"}


def demo(
    out: Path, echo: Echo = print, *, overrides: Sequence[str] = (), teacher_epochs: int = TEACHER_EPOCHS
) -> Result:
    """Train a teacher, distil it into a student of a 12th of its size, and write a report.

    A finished demo is shown again, an interrupted one goes on where it was.

    Args:
        out: Its folder: the teacher goes to ``teacher/``, the run to ``run/``.
        echo: Where lines of text go.
        overrides: ``a.b=value`` settings on top of the recipe ``demo``.
        teacher_epochs: Epochs of the teacher; the recipe's notes tell of the default.

    Returns:
        The result; its table and its report are the caller's to show.

    Raises:
        UserError: If ``out`` holds other files, or cannot be written.
    """
    recipe = load("demo", overrides)
    out = out.resolve()
    folder = RunFolder(out / "run")
    _check_ours(out)
    if folder.finished:
        folder.check_same(recipe)
        echo(f"{out} is finished already; remove it to run the demo anew")
        return finished(folder)
    with _one_thread():
        return _run(recipe, out, folder, echo, teacher_epochs)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and on a busy machine wait for them for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(recipe: Recipe, out: Path, folder: RunFolder, echo: Echo, teacher_epochs: int) -> Result:
    """The teacher if it is not there yet, then the run; both go on where they were."""
    watch = Stopwatch()
    data = Path(str(resources.files("potstill") / "data"))
    weights = out / "teacher" / "teacher.safetensors"
    if not weights.is_file():
        echo("training a teacher on all labels")
        accuracy = _train_teacher(recipe, data, weights, epochs=teacher_epochs)
        if accuracy is None:
            return Result(folder.path, {}, interrupted=True)
        echo(f"teacher: trained in {watch.seconds:.0f} s, {accuracy:.2%} on validation")
    experiment = load_experiment(recipe, [weights.parent, data])
    result = execute(experiment, folder, resume=folder.recipe.is_file(), control=True, echo=echo)
    if not result.interrupted:
        echo(f"the demo took {watch.seconds:.0f} s")
    return result


def _check_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(str(out), "expected a folder for the demo, got a file")
    others = sorted(item.name for item in out.iterdir() if item.name not in OURS) if out.is_dir() else []
    if others:
        raise UserError(str(out), f"holds files that are not the demo's ({others[0]}); run it elsewhere")


def _train_teacher(recipe: Recipe, data: Path, weights: Path, *, epochs: int) -> float | None:
    """Train the recipe's teacher on all training labels, or go on with it.

    Args:
        recipe: Its data (but for the limit), augmentation, teacher and seed are used.
        data: Folder of the digits.
        weights: Where the finished teacher goes; its checkpoints stand beside it meanwhile.
        epochs: How long.

    Returns:
        Its accuracy on validation, ``None`` if the user interrupted.
    """
    splits = load_data(replace(recipe.data, limit=None), search=[data])
    torch.manual_seed(recipe.seed)
    assert recipe.teacher is not None, "the demo has a teacher"
    model = build(recipe.teacher, num_classes=len(splits.train.class_names), search=[], where="teacher")
    view = preprocessing_of(model, recipe.teacher, splits.train.channels, None, where="teacher")
    task = Classification(
        class_names=splits.train.class_names,
        preprocessing={"student": view},
        augmentation=recipe.augment,
    ).seeded(recipe.seed, len(splits.train))
    validation = Loader(
        splits.validation, batch_size=len(splits.validation), seed=0, shuffle=False, drop_last=False
    )
    device = torch.device("cpu")
    trained = train(
        Offline(model, None, Objective({}, task.supervised)),
        Loader(splits.train, batch_size=BATCH_SIZE, seed=recipe.seed, partners=task.partners),
        task.training_batch,
        TrainConfig(epochs=epochs, batch_size=BATCH_SIZE, learning_rate=0.1, checkpoint_every=100),
        precision=choose("float32", device, model),
        device=device,
        folder=weights.parent,
        observer=Many(),
        evaluate=lambda networks: {name: task.evaluate(one, validation) for name, one in networks.items()},
        metric=task.metric,
        resume=True,
        seed=recipe.seed,
    )
    if trained.interrupted:
        return None
    save_weights(model, weights, {"epochs": str(epochs)})
    for checkpoint in weights.parent.glob("step-*.pt"):
        checkpoint.unlink()
    return trained.history[-1][task.metric]
