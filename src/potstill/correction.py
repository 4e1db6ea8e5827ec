"""A short training of the teacher on the data, before it teaches.

A teacher that never saw texts of this kind is often worse on them than a student that learns from them, and
then has little to teach; a few steps are enough to change that.

Reference:
    Sreenivas and others, "LLM Pruning and Distillation in Practice: The Minitron Approach", 2024,
    https://arxiv.org/abs/2408.11796
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

from torch import nn

from potstill import distributed
from potstill.config import LanguageRecipe, Recipe
from potstill.experiment import Experiment
from potstill.folder import RunFolder
from potstill.matching.objective import Objective
from potstill.models.weights import load_weights, save_weights
from potstill.schemes import Offline
from potstill.train import train
from potstill.train.observe import Observer

__all__ = ["correct_teacher", "corrects", "load_correction"]

NAME = "teacher"


def corrects(recipe: Recipe) -> bool:
    """Whether a recipe has its teacher corrected first."""
    return isinstance(recipe, LanguageRecipe) and recipe.correct is not None


def load_correction(experiment: Experiment, folder: RunFolder) -> bool:
    """Give the teacher the weights that a run corrected it to; whether there are any."""
    weights = folder.cell(NAME) / "corrected.safetensors"
    if experiment.teacher is None or not weights.is_file():
        return False
    load_weights(experiment.teacher, weights, "teacher")
    return True


def correct_teacher(experiment: Experiment, folder: RunFolder, observer: Observer, *, resume: bool) -> bool:
    """Train the experiment's teacher in place as the recipe's ``correct`` says, once.

    It sees the training part in another order than the students.

    Returns:
        Whether it is done; ``False`` if the user interrupted it (its checkpoint is saved).

    Raises:
        UserError: If its loss is not finite.
    """
    recipe = experiment.recipe
    wanted = recipe.correct if isinstance(recipe, LanguageRecipe) else None
    if wanted is None or experiment.teacher is None or load_correction(experiment, folder):
        return True
    config = dataclasses.replace(recipe.train, steps=wanted.steps, learning_rate=wanted.learning_rate)
    network = copy.deepcopy(experiment.teacher).float().requires_grad_(True)
    seed = recipe.seed + recipe.seeds
    loader, prepare = experiment.training(seed, batch_size=wanted.batch_size)
    part = experiment.evaluation(experiment.splits.validation)

    def evaluate(networks: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        task = experiment.task
        return {
            name: task.score(task.predict(each, part, "teacher"), part) for name, each in networks.items()
        }

    trained = train(
        Offline(network, None, Objective({}, experiment.task.supervised, 1.0)),
        loader,
        prepare,
        config,
        precision=experiment.precision,
        device=experiment.device,
        folder=folder.cell(NAME),
        observer=observer,
        evaluate=evaluate,
        metric=experiment.task.metric,
        higher=experiment.task.higher_is_better,
        resume=resume,
        seed=seed,
    )
    if trained.interrupted:
        return False
    network.load_state_dict(trained.last_state)
    if distributed.is_main():
        save_weights(network, folder.cell(NAME) / "corrected.safetensors", {"steps": str(trained.steps)})
        for checkpoint in folder.cell(NAME).glob("step-*.pt"):
            checkpoint.unlink()
    distributed.barrier()
    return load_correction(experiment, folder)
