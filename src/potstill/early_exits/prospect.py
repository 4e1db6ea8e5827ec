"""What a run's early exits can save and promise, told before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator

from potstill.deploy.candidates import num_tested
from potstill.deploy.guarantee import least_promise
from potstill.early_exits.parts import parts_of, seen_before
from potstill.experiment import Experiment
from potstill.models.exits import WithExits
from potstill.models.segments import cut
from potstill.schemes.settings import DeepSupervisionConfig

__all__ = ["prospect"]


def prospect(experiment: Experiment) -> Iterator[str]:
    """Lines of text; none for a scheme without exits.

    Args:
        experiment: The loaded recipe.

    Raises:
        UserError: If the test part is too small for ``scheme.calibrate_on``.
    """
    config = experiment.recipe.scheme
    if not isinstance(config, DeepSupervisionConfig):
        return
    parts = parts_of(config, experiment.splits)
    network = experiment.blank("student").to(experiment.device)
    assert isinstance(network, WithExits)
    reason = cut(network.model, network.paths, experiment.example().tensor("student")).reason
    places = f"early exits at {', '.join(network.paths)}"
    if reason:
        yield f"{places} will save no time: the network is computed whole, it cannot be cut, as {reason}"
    else:
        yield f"{places}: the network can be cut there, what a sample skips is not computed"
    wish = (
        f"at most {config.max_latency_ms:g} ms an image"
        if config.wished_loss is None
        else f"at most {100 * config.wished_loss:g} points lost"
    )
    yield (
        f"thresholds by {config.policy} for {wish}: chosen on {len(parts.calibration)} "
        f"{parts.calibrated_on} images, reported on {len(parts.reporting)} others of the test part"
        if parts.calibrated_on == "test"
        else f"thresholds by {config.policy} for {wish}: chosen on {len(parts.calibration)} validation "
        f"images, reported on the {len(parts.reporting)} test images"
    )
    tested = num_tested(len(parts.calibration))
    least = least_promise(tested)
    if config.wished_loss is not None and least > config.wished_loss:
        yield (
            f"{tested} calibration images are too few to promise {100 * config.wished_loss:g} points: the "
            f"best that they can promise is {100 * least:.2g}"
        )
    yield from seen_before(config, experiment.recipe)
