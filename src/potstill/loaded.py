"""A finished run's student, loaded to measure, export or look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.assembly.load import load_experiment, search_path
from potstill.config import load
from potstill.correction import load_correction
from potstill.errors import UserError
from potstill.files import read_json
from potstill.folder import RunFolder
from potstill.measure import OneInput
from potstill.models.preprocessing import Preprocessing
from potstill.models.weights import load_weights
from potstill.rounds.shapes import of_round, round_at_size, shaped
from potstill.tasks import (
    Classification,
    Detection,
    ImageFromNoise,
    ImageToImage,
    Task,
    TextClassification,
)

__all__ = ["IN_MEMORY", "LoadedRun", "load_student"]


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, loaded to measure or export it.

    Attributes:
        student: The trained student, in eval mode.
        teacher: Its teacher, in eval mode, where it has one.
        task: What was learnt.
        inputs: One input of teacher and student, or its shape.
        test: The test part.
    """

    student: nn.Module
    teacher: nn.Module | None
    task: Task
    inputs: dict[str, OneInput]
    test: Any

    @property
    def preprocessing(self) -> Preprocessing:
        """How the student wants its images."""
        return self._images().preprocessing["student"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the logits."""
        return (
            self.task.class_names if isinstance(self.task, TextClassification) else self._images().class_names
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image of the data, ``(C, H, W)``."""
        self._images()
        shape: tuple[int, int, int] = self.test.shape
        return shape

    def _images(self) -> Classification | Detection:
        if not isinstance(self.task, Classification | Detection):
            raise UserError(
                "export", f"so far classifiers, detectors and generators, got {self.task.samples}"
            )
        return self.task

    @property
    def finds_boxes(self) -> bool:
        """Whether the student is a detector."""
        return isinstance(self.task, Detection)

    @property
    def makes_images(self) -> bool:
        """Whether the student is a generator."""
        return isinstance(self.task, ImageToImage | ImageFromNoise)

    @property
    def reads_texts(self) -> bool:
        """Whether the student is a classifier of texts."""
        return isinstance(self.task, TextClassification)

    @property
    def tokenizer(self) -> Any:
        """What cuts texts for the student."""
        assert isinstance(self.task, TextClassification)
        return self.task.tokenizers["student"]

    def tokens(self, count: int) -> list[Mapping[str, Tensor]]:
        """The first ``count`` test texts as the student sees each alone, tensors ``(1, L)`` by name."""
        found = []
        for place in range(min(count, len(self.test))):
            inputs = self.task.plain_batch(*self.test.__getitems__([place])).input("student")
            assert isinstance(inputs, Mapping), "texts are tokens and their mask"
            found.append(inputs)
        return found

    def generator_inputs(self, count: int) -> Tensor:
        """What a generator is given for the first ``count`` test images, ``(count, ...)``."""
        assert self.makes_images
        rows = self.test.__getitems__(list(range(min(count, len(self.test)))))
        return self.task.plain_batch(*rows).tensor("student")

    def samples(self, count: int) -> Tensor:
        """The first ``count`` test images as the data gives them, ``(count, C, H, W)``."""
        self._images()
        images, _, _ = self.test.__getitems__(list(range(min(count, len(self.test)))))
        assert isinstance(images, Tensor)
        return images


def load_student(
    run_folder: Path,
    data: Path | None = None,
    *,
    round_number: int | None = None,
    at_size: float | None = None,
) -> LoadedRun:
    """Load the student and the teacher of a finished run.

    Args:
        run_folder: The run folder.
        data: Where to look for relative paths first; the run's own places come next.
        round_number: Of a pruned student, the one after this round instead of the last.
        at_size: Or the largest of at most this size: a share of the original, or in the target's unit.

    Raises:
        UserError: If the folder is no finished run, its data or teacher are gone, or it has no such round.
    """
    folder = RunFolder(run_folder.resolve())
    folder.read_result()
    if at_size is not None:
        if round_number is not None:
            raise UserError("--at-size", "chooses the round; leave --round out")
        round_number = round_at_size(folder, at_size)
    recipe = load(folder.recipe)
    if recipe.data.path == IN_MEMORY:
        raise UserError(
            str(run_folder), "was made by potstill.distill from objects in memory; export from Python"
        )
    facts = read_json(folder.environment)
    search = [*search_path(data), *(Path(path) for path in facts.get("search", []))]
    recipe = replace(recipe, train=replace(recipe.train, device="cpu"))
    if recipe.teacher is not None:  # the network itself is wanted, whatever became of its cache
        recipe = replace(recipe, teacher=replace(recipe.teacher, cache=None))
    experiment = load_experiment(recipe, search)
    load_correction(experiment, folder)
    place, weights = of_round(folder, round_number, recipe)
    student = shaped(experiment, place).blank("student")
    load_weights(student, weights, weights.name)
    teacher = experiment.teacher
    return LoadedRun(
        student=student.eval(),
        teacher=None if teacher is None else teacher.to(memory_format=torch.contiguous_format),
        task=experiment.task,
        inputs=experiment.inputs(),
        test=experiment.splits.test,
    )


IN_MEMORY = "<in memory>"
