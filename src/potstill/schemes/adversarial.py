"""A generator that learns from its teacher and from a discriminator, which learns along."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from potstill.batch import Batch, Share, Signals, Step
from potstill.errors import UserError
from potstill.losses.adversarial import Game, against, deceiving, gradient_penalty
from potstill.matching.objective import Objective, TermConfig
from potstill.matching.taps import first_tensor
from potstill.schemes.around import Around
from potstill.schemes.offline import Offline
from potstill.schemes.paraphrasing import refuse_paraphrasers
from potstill.schemes.signs import DISCRIMINATOR, VARIETY, Signs
from potstill.schemes.stages import Stage
from potstill.teachers import Teacher

__all__ = ["Adversarial"]

GENERATOR = "generator"
"""The other phase is called ``discriminator``, as its part and what that minimises are."""


class Adversarial(Around):
    """A student generator and a discriminator that alternate within each step, each with its optimiser.

    In the generator's phase the student minimises the objective (the difference from the true image, and
    whatever compares it with its teacher) and what deceives the discriminator; in the discriminator's, that
    learns to tell the student's images from real ones: the batch's target (the true images, or, where
    nothing is supervised, any real ones), else the teacher's. No gradient of one phase reaches the other's
    network. ``variety``, which has no weight, is how much the student's images differ within a batch, over
    how much the real ones do.

    Args:
        student: The generator to train.
        teacher: A trained generator; ``None`` for an objective without terms.
        objective: What the student minimises beside.
        discriminator: Judges images, ``(N, ...)`` of ``(N, C, H, W)``.
        example: A small batch.
        game: ``hinge``, ``least_squares`` or ``vanilla``.
        weight: Weight of what deceives the discriminator.
        conditional: Let the discriminator see the input beside the image.
        r1: Weight of the gradient penalty on real images; 0 for none.
        samples: Size of the training set, needed by losses that remember every sample.

    Raises:
        UserError: If there is nothing real to compare with, or the discriminator does not take the images.

    Reference:
        Li, Lin, Ding, Liu, Zhu, Han, "GAN Compression: Efficient Architectures for Interactive Conditional
        GANs", 2020, https://arxiv.org/abs/2003.08936

    >>> batch = Batch({"student": torch.rand(2, 3, 8, 8)}, None, None, torch.arange(2))
    >>> student, teacher, judge = (nn.Conv2d(3, channels, 1) for channels in (3, 3, 1))
    >>> scheme = Adversarial(student, teacher, Objective({"image_l1": {}}), judge, example=batch)
    >>> [sorted(scheme(batch, phase).parts) for phase in ("generator", "discriminator")]
    [['adversarial', 'image_l1'], ['discriminator', 'variety']]
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: Objective,
        discriminator: nn.Module,
        *,
        example: Batch,
        game: Game = "hinge",
        weight: float = 1.0,
        conditional: bool = False,
        r1: float = 0.0,
        samples: int | None = None,
    ) -> None:
        super().__init__(Offline(student, teacher, objective, example=example, samples=samples))
        refuse_paraphrasers(self.inner.objective)
        self.game, self.weight, self.conditional, self.r1 = game, weight, conditional, r1
        self.parts = self.inner.parts
        self.parts[DISCRIMINATOR] = discriminator
        # A plain attribute: it is among the parts, and a loop may wrap those.
        object.__setattr__(self, "_judge", discriminator)
        self._answered: list[tuple[Batch, Tensor, Tensor]] = []
        self.notices = Signs().notices
        if _given(example) is None and teacher is None:
            raise UserError("scheme", "adversarial needs real images: true ones, or a teacher's")
        self._example = example
        self._check_discriminator(example)

    def _check_discriminator(self, example: Batch) -> None:
        if not any(parameter.requires_grad for parameter in self.judge.parameters()):
            raise UserError("scheme.discriminator", "has no parameters that could learn")
        with torch.no_grad():
            real = self._real(example)
        try:
            with torch.no_grad():
                judged = self.judge(self._seen(example, real))
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError("scheme.discriminator", f"cannot judge the images: {error}") from error
        if not isinstance(judged, Tensor) or judged.dim() < 2 or len(judged) != len(real):
            got = tuple(judged.shape) if isinstance(judged, Tensor) else type(judged).__name__
            raise UserError("scheme.discriminator", f"expected judgements ({len(real)}, ...), got {got}")

    # What a loop asks -----------------------------------------------------------------------------

    @property
    def teacher(self) -> Teacher | None:
        """The trained generator."""
        return self.inner.teacher

    @property
    def judge(self) -> nn.Module:
        """The bare discriminator."""
        judge: nn.Module = self.__dict__["_judge"]
        return judge

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage of two phases."""
        return (Stage("train", phases=(GENERATOR, DISCRIMINATOR)),)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The generator."""
        return {"student": self.student}

    @property
    def aids(self) -> dict[str, nn.Module]:
        """The bare discriminator, kept beside the student: that of a student may start from it."""
        return {DISCRIMINATOR: self.judge}

    def stepped(self, steps: int) -> None:
        """Forget the answers of a step that is done."""
        self._answered.clear()

    def trainable(self, stage: str = "train", phase: str = GENERATOR) -> dict[str, nn.Module]:
        """The generator or the discriminator."""
        name = "student" if self._checked(phase) == GENERATOR else DISCRIMINATOR
        return {name: self.parts[name]}

    def counts(self, batch: Batch, phase: str = GENERATOR) -> dict[str, float]:
        """What each part of the loss is divided by for this batch; no forward pass."""
        rows = float(len(batch))
        if self._checked(phase) == GENERATOR:
            return {**self.objective.counts(batch), "adversarial": rows}
        return {DISCRIMINATOR: rows, VARIETY: 1.0, **({"r1": rows} if self.r1 else {})}

    def control(self, student: nn.Module) -> Offline | Adversarial:  # type: ignore[override]
        """The same student without what the teacher adds.

        Where there are true images, or the input is noise and any real image is right: they, and a game with
        a copy of the discriminator as it is now. Where only the teacher's output says what is right: the
        difference from that alone, pixel by pixel.
        """
        if self.objective.supervised is None and not self._from_noise:
            return Offline(student, cast(nn.Module, self.teacher), _pixels_alone(self.objective))
        if _given(self._example) is None:
            return Offline(student, None, self.objective.without_terms())
        judge, example = copy.deepcopy(self.judge), self._example
        options: dict[str, Any] = {
            name: getattr(self, name) for name in ("game", "weight", "conditional", "r1")
        }
        return Adversarial(student, None, self.objective.labels_only(), judge, example=example, **options)

    @property
    def _from_noise(self) -> bool:
        """Whether inputs are vectors ``(N, k)``, which say nothing of the image that is wanted."""
        return self._example.tensor("student").dim() == 2 and _given(self._example) is not None

    # The two phases -------------------------------------------------------------------------------

    def forward(self, batch: Batch, phase: str = GENERATOR) -> Step:
        """One pass of a phase.

        Args:
            batch: What all see.
            phase: ``generator``, or ``discriminator``; in a step the second looks at the images of the first.

        Returns:
            The parts of the loss, and the student's answer.
        """
        return self._generator(batch) if self._checked(phase) == GENERATOR else self._discriminator(batch)

    def _generator(self, batch: Batch) -> Step:
        given = _given(batch)
        step, teacher = self.inner.lesson(batch, ask=given is None)
        fake = step.output.output
        with _constant(self.judge):
            judged = self.judge(self._seen(batch, fake))
        with torch.autocast(fake.device.type, enabled=False):
            values = deceiving(judged.float() if judged.dtype != torch.float64 else judged, self.game)
        real = given if teacher is None or given is not None else teacher.output
        assert real is not None, "there are real images or a teacher"
        self._answered.append((batch, real.detach(), fake.detach()))
        share = Share(values.sum(), float(len(batch)), self.weight)
        return Step({**step.parts, "adversarial": share}, step.output)

    def _discriminator(self, batch: Batch) -> Step:
        real, fake = self._images(batch)
        seen = torch.cat([self._seen(batch, real), self._seen(batch, fake)])
        seen.requires_grad_(self.r1 > 0)
        judged = self.parts[DISCRIMINATOR](seen)  # in one pass, as DDP wants it
        judged = judged.float() if judged.dtype != torch.float64 else judged
        rows = float(len(batch))
        with torch.autocast(fake.device.type, enabled=False):
            of_real, of_fake = judged.chunk(2)
            parts = {DISCRIMINATOR: Share(against(of_real, of_fake, self.game).sum(), rows, 1.0)}
            if self.r1:
                penalty = gradient_penalty(of_real, seen)[: len(batch)]
                parts["r1"] = Share(penalty.sum(), rows, self.r1)
            parts[VARIETY] = Share(_variety(fake) / _variety(real).clamp(min=1e-12), 1.0, 0.0)
        return Step(parts, Signals(fake))

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Real images and the student's, as they were in the generator's phase of the step."""
        for known, real, fake in self._answered:
            if known is batch:
                return real, fake
        with torch.no_grad():
            made = first_tensor(self.student(batch.tensor("student")))
            assert made is not None, "a generator gives images"
            return self._real(batch), made

    def _real(self, batch: Batch) -> Tensor:
        """Those of the batch, else the teacher's."""
        if (given := _given(batch)) is not None:
            return given
        assert self.teacher is not None, "without real images there is a teacher"
        return self.teacher(batch).output

    def _seen(self, batch: Batch, images: Tensor) -> Tensor:
        """What the discriminator sees of an image: itself, and the input where it asks for that."""
        return torch.cat([batch.tensor("student"), images], dim=1) if self.conditional else images

    def _checked(self, phase: str) -> str:
        if phase not in (GENERATOR, DISCRIMINATOR):
            raise ValueError(f"adversarial has the phases generator and discriminator, got {phase!r}")
        return phase

    def _apply(self, fn: Any, recurse: bool = True) -> Adversarial:
        """Move or cast the teacher along with the rest."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if isinstance(self.teacher, nn.Module):
            self.teacher._apply(fn, recurse)
        return self


def _pixels_alone(objective: Objective) -> Objective:
    """The terms that compare outputs pixel by pixel; one of weight 1 where there are none."""
    kept = {name: term.config for name, term in objective.terms.items() if term.config.loss == "image_l1"}
    return Objective(kept or {"image_l1": TermConfig(loss="image_l1", weight=1.0)})


def _given(batch: Batch) -> Tensor | None:
    """The batch's target where it is an image, and no class."""
    target = batch.target
    return target if target is not None and target.is_floating_point() else None


def _variety(images: Tensor) -> Tensor:
    """Mean squared distance of a batch's images from their mean, 0-d; 1 of a single one."""
    if len(images) < 2:
        return images.new_ones(())
    images = images.float()
    apart = images - images.mean(dim=0)  # torch's variance over the first dimension takes ten times as long
    return apart.square().sum() / ((len(images) - 1) * images[0].numel())


@contextmanager
def _constant(module: nn.Module) -> Iterator[None]:
    """Parameters get no gradient from what is computed meanwhile; what goes through them does."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
