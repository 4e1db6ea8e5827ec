"""Whatever sorts samples into classes: answers are logits, and right is what the label says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill import distributed
from potstill.batch import Batch, Signals, ask
from potstill.data.dataset import LabelledSet
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.matching.taps import first_tensor
from potstill.metrics import quality
from potstill.metrics.sanity import check_teacher
from potstill.metrics.verdict import mean_interval
from potstill.report.evidence import arm_detail, class_differences, telling_samples
from potstill.tasks.contract import Answers

__all__ = ["Classifier"]


@dataclass(frozen=True, kw_only=True)
class Classifier(ABC):
    """The part of a task that its answers ``(..., N, C)``, logits of classes, decide.

    Attributes:
        class_names: One name a class, in the order of the labels.
        label_smoothing: Share of the target spread over all classes, 0 to 1.
    """

    class_names: tuple[str, ...]
    label_smoothing: float = 0.0

    metric = "accuracy"
    higher_is_better = True
    samples = "samples"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @abstractmethod
    def plain_batch(self, samples: Any, labels: Tensor, index: Tensor) -> Batch:
        """A batch for evaluation."""

    @abstractmethod
    def shown(self, part: LabelledSet, position: int) -> Mapping[str, str]:
        """A sample for the report, as fields of its :class:`Sample`."""

    def supervised(self, signals: Signals, batch: Batch) -> Tensor:
        """Cross-entropy with the labels, ``(N,)`` in float32."""
        assert batch.target is not None
        logits = signals.output.float() if signals.output.dtype != torch.float64 else signals.output
        return cross_entropy(logits, batch.target, reduction="none", label_smoothing=self.label_smoothing)

    # Answers ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, model: nn.Module, loader: Loader, role: str) -> Tensor:
        """Logits of every sample, in the order of the data set, the same on every rank.

        Args:
            model: A classifier; put in eval mode for the call and back afterwards.
            loader: Gives this rank's share of the samples, each exactly once over all ranks.
            role: Whose inputs to use.

        Returns:
            ``(len(data), C)`` float32 on the CPU.
        """
        training = model.training
        model.eval()
        rows: Tensor | None = None
        for samples, labels, index in loader.epoch(0):
            answer = ask(model, self.plain_batch(samples, labels, index).input(role))
            logits = answer.output if isinstance(answer, Signals) else first_tensor(answer)
            assert logits is not None, "a classifier gives logits"
            logits = logits.float().cpu()
            if rows is None:
                rows = logits.new_zeros(len(loader.dataset), logits.shape[1])
            rows[index.cpu()] = logits
        model.train(training)
        if rows is None:
            rows = torch.zeros(len(loader.dataset), self.num_classes)
        return distributed.sum_tensor(rows)

    def evaluate(self, model: nn.Module, loader: Loader, role: str = "student") -> dict[str, float]:
        """Accuracy (a fraction) and mean cross-entropy over all samples of ``loader``."""
        return self.score(self.predict(model, loader, role), loader)

    def score(self, logits: Tensor, loader: Loader) -> dict[str, float]:
        """The same of logits ``(len(data), C)``."""
        assert isinstance(loader.dataset, LabelledSet), "what is sorted into classes has labels"
        labels = loader.dataset.labels
        return {
            "accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
            "loss": float(cross_entropy(logits, labels)),
        }

    def value(self, answers: Answers, part: LabelledSet) -> float:
        """Accuracy of logits ``(N, C)``."""
        return quality.accuracy(answers, part.labels.numpy())

    def per_sample(self, answers: Answers, part: LabelledSet) -> NDArray[np.float64]:
        """1 where the greatest of the logits ``(..., N, C)`` is the label's, else 0."""
        right: NDArray[np.float64] = (answers.argmax(axis=-1) == part.labels.numpy()).astype(np.float64)
        return right

    def interval(self, answers: Answers, part: LabelledSet) -> tuple[float, float]:
        """Of the accuracy over seeds and samples."""
        return mean_interval(self.per_sample(answers, part))

    def figures(
        self, answers: Answers, teacher: Answers | None, part: LabelledSet
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Agreement and divergence with the teacher; calibration error."""
        labels, beside = part.labels.numpy(), {}
        if teacher is not None:
            beside = {
                "agreement": float(np.mean([quality.agreement(one, teacher) for one in answers])),
                "kl_to_teacher": float(np.mean([quality.kl_to_teacher(one, teacher) for one in answers])),
            }
        errors = [quality.calibration(quality.softmax(one), labels).ece for one in answers]
        return beside, {"ece": float(np.mean(errors))}

    def joined(self, answers: Sequence[Answers]) -> Answers:
        """The mean of their probabilities, ``(N, C)``."""
        mean: Answers = np.mean([quality.softmax(some) for some in answers], axis=0)
        return mean

    def agreement(self, one: Answers, other: Answers) -> float:
        """How often both give the same class."""
        return quality.agreement(one, other)

    # Checks and what is told ------------------------------------------------------------------------

    def check_output(self, output: Any, batch: Batch, role: str) -> None:
        """Refuse what is no logits ``(N, classes)``."""
        wanted = (len(batch), self.num_classes)
        logits = first_tensor(output)
        if logits is None or tuple(logits.shape) != wanted:
            got = tuple(logits.shape) if logits is not None else type(output).__name__
            raise UserError(
                f"{role}.model",
                f"expected logits {wanted} for the data's {wanted[1]} classes, got {got}",
            )

    def check_teacher(self, answers: Answers, part: LabelledSet) -> float:
        """Accuracy of the teacher, if it is one (see :func:`~potstill.metrics.sanity.check_teacher`)."""
        return check_teacher(answers, part.labels.numpy(), self.class_names)

    def evidence(
        self, answers: Mapping[str, Answers], part: LabelledSet, temperature: float
    ) -> dict[str, Any]:
        """Reliability, accuracy of each class, and telling samples."""
        labels = part.labels.numpy()
        both = "student" in answers and "control" in answers
        return {
            "class_names": self.class_names,
            "details": {arm: arm_detail(logits, labels) for arm, logits in answers.items()},
            "differences": class_differences(answers["student"], answers["control"], labels, self.class_names)
            if both
            else (),
            "samples": telling_samples(
                {arm: logits[0] for arm, logits in answers.items()},
                labels,
                self.class_names,
                temperature=temperature,
                shown=lambda position: self.shown(part, position),
            ),
        }
