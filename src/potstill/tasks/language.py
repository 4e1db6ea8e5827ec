"""Language modelling: the next token of texts and conversations, packed into rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill import distributed
from potstill.batch import Batch, Signals, ask
from potstill.data.loader import Loader
from potstill.data.tokens import IGNORED, TokenSet
from potstill.errors import UserError
from potstill.matching.taps import first_tensor
from potstill.measure import OneInput
from potstill.metrics.perplexity import document_scores, perplexity, token_closeness
from potstill.models.architecture import says_all
from potstill.models.causal import save_huggingface
from potstill.models.lora import merged, save_adapters
from potstill.models.projection import COUNTED
from potstill.models.weights import save_weights
from potstill.tasks.contract import Answers
from potstill.tasks.token_answers import (
    CHOICE,
    KL,
    LOSS,
    OVERLAP,
    by_document,
    divergences,
    joined,
    mean_loss,
)

__all__ = ["LanguageModeling"]

MEASURED_TOKENS = 32
EVALUATED_TOKENS = 2048
"""Tokens of one pass in evaluation: their logits over a whole vocabulary must fit into memory."""


@dataclass(frozen=True, kw_only=True)
class LanguageModeling:
    """Batches, supervised loss and answers of a causal language model.

    Answers are ``(..., R, L, 4)`` for ``R`` rows of ``L`` tokens: of each prediction the loss, the divergence
    from and the overlap with the teacher's (on the test part, where there is a teacher), and the likeliest
    token. Distributions over a vocabulary are too big to keep.

    Attributes:
        tokenizer: What cuts texts into tokens, and is saved with the student.
        vocabulary: Number of tokens that an output tells apart.
        teacher: The network whose predictions on the test part are compared.
        frequencies: How often each token occurs in the training part, ``(V,)``.
        device: Where batches go.
        precision: What networks compute in when they are measured, as when they are trained.
        projected: Whether networks answer to training batches with hidden states (see
            :mod:`potstill.models.projection`), so that nobody holds the logits of all tokens.
    """

    tokenizer: Any
    vocabulary: int
    teacher: nn.Module | None = None
    frequencies: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Literal["float32", "bf16"] = "float32"
    projected: bool = False

    metric = "perplexity"
    higher_is_better = False
    samples = "rows of tokens"

    @property
    def num_classes(self) -> int:
        """Size of the vocabulary."""
        return self.vocabulary

    # Training ---------------------------------------------------------------------------------------

    def placed(self, device: torch.device, *, channels_last: bool) -> LanguageModeling:
        """The same task, its batches on ``device``."""
        del channels_last
        return replace(self, device=device)

    def seeded(self, seed: int, samples: int) -> LanguageModeling:
        """The same task: texts are not augmented."""
        del seed, samples
        return self

    @property
    def partners(self) -> Callable[[Tensor, int], Tensor] | None:
        """Texts are not mixed."""
        return None

    def training_batch(
        self, samples: Mapping[str, Tensor], target: Tensor, index: Tensor, view: int
    ) -> Batch:
        """A batch of rows.

        Args:
            samples: ``input_ids`` and ``position_ids``, ``(N, L)``.
            target: The next token of each, ``(N, L)``; -100 where no prediction counts.
            index: ``(N,)`` positions in the data set.
            view: Number of the epoch.

        Returns:
            The batch; it counts the predictions whose target is there.
        """
        batch = replace(self.plain_batch(samples, target, index), view=view)
        inputs, where = batch.inputs["student"], batch.where
        assert isinstance(inputs, Mapping), "tokens and their positions go by names"
        assert where is not None
        if not self.projected:
            return batch
        return replace(batch, inputs={"student": {**inputs, COUNTED: where}})

    def plain_batch(self, samples: Mapping[str, Tensor], target: Tensor, index: Tensor) -> Batch:
        """A batch for evaluation, as :meth:`training_batch`; it is always answered with logits."""
        inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in samples.items()}
        target = target.to(self.device, non_blocking=True)
        where = target != IGNORED
        return Batch({"student": inputs}, target.masked_fill(~where, 0), where, index.to(self.device))

    def supervised(self, signals: Signals, batch: Batch) -> Tensor:
        """Cross-entropy with the next token, ``(N, L)`` in float32; 0 where none counts."""
        assert batch.target is not None
        assert batch.where is not None
        logits = signals.output
        values = logits.new_zeros(batch.where.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
        counted = logits[batch.where].to(values.dtype)
        return values.masked_scatter(
            batch.where, cross_entropy(counted, batch.target[batch.where], reduction="none")
        )

    # Answers ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, model: nn.Module, loader: Loader, role: str) -> Tensor:
        """Answers to every row, in the order of the data set, the same on every rank.

        Args:
            model: A causal language model; put in eval mode for the call and back afterwards.
            loader: Gives this rank's share of the rows, each exactly once over all ranks.
            role: Whose inputs to use.

        Returns:
            ``(R, L, 4)`` float32 on the CPU; 0 where no prediction counts.
        """
        part = loader.dataset
        assert isinstance(part, TokenSet), "a language model reads rows of tokens"
        training = model.training
        model.eval()
        beside = self.teacher if part.beside_teacher and role != "teacher" else None
        answers = torch.zeros(len(part), part.length, 4)
        at_once = max(1, EVALUATED_TOKENS // part.length)
        for samples, target, index in loader.epoch(0):
            for start in range(0, len(index), at_once):
                rows = torch.arange(start, min(start + at_once, len(index)))
                some = {name: tensor[rows] for name, tensor in samples.items()}
                batch = self.plain_batch(some, target[rows], index[rows])
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    found = self._answers(model, batch, role, beside)
                counted = torch.from_numpy(part.packed.counted[index[rows].numpy()])
                place, token = counted.nonzero(as_tuple=True)
                answers[index[rows][place], token] = found.cpu()
        model.train(training)
        return distributed.sum_tensor(answers)

    def _answers(self, model: nn.Module, batch: Batch, role: str, beside: nn.Module | None) -> Tensor:
        """What is kept of the predictions that count, ``(predictions, 4)``."""
        assert batch.target is not None
        logits = _logits(model, batch, role)
        kept = logits.new_zeros(len(logits), 4)
        kept[:, LOSS] = cross_entropy(logits, batch.target[batch.where], reduction="none")
        kept[:, CHOICE] = logits.argmax(dim=-1).float()
        if role == "teacher":
            kept[:, OVERLAP] = 1.0
        if beside is not None:
            close = token_closeness(logits, _logits(beside, batch, "teacher"))
            kept[:, KL], kept[:, OVERLAP] = close["kl"], close["overlap"]
        return kept

    def score(self, answers: Tensor, loader: Loader) -> dict[str, float]:
        """Perplexity, and the mean loss of a token in nats."""
        assert isinstance(loader.dataset, TokenSet)
        loss = mean_loss(answers.numpy()[..., LOSS], loader.dataset)
        return {"perplexity": float(np.exp(loss)), "loss": loss}

    def value(self, answers: Answers, part: TokenSet) -> float:
        """Perplexity of answers ``(R, L, 4)``."""
        return float(np.exp(mean_loss(answers[..., LOSS], part)))

    def per_sample(self, answers: Answers, part: TokenSet) -> NDArray[np.float64]:
        """A score a document, ``(..., D)``, in nats a token: see ``perplexity.document_scores``."""
        losses, counts = by_document(answers, part)
        return document_scores(losses, counts)

    def interval(self, answers: Answers, part: TokenSet) -> tuple[float, float]:
        """Of the perplexity, over seeds and documents."""
        losses, counts = by_document(answers, part)
        return perplexity(losses, counts).interval

    def figures(
        self, answers: Answers, teacher: Answers | None, part: TokenSet
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Agreement, divergence and overlap with the teacher by token; how much was measured."""
        where, beside = part.packed.counted, {}
        if teacher is not None:
            same = answers[..., CHOICE] == teacher[..., CHOICE]
            beside = {"agreement": float(same[..., where].mean())}
        if self.teacher is not None and teacher is not None:  # one that is not loaded was not asked
            beside |= {
                "kl_to_teacher": float(answers[..., KL][..., where].mean()),
                "acceptance": float(answers[..., OVERLAP][..., where].mean()),
            }
        return beside, {"tokens": part.tokens, "documents": part.documents}

    def joined(self, answers: Sequence[Answers]) -> Answers:
        """Answers of the mean of the networks' probabilities; its best token is the first network's."""
        return joined(answers)

    def agreement(self, one: Answers, other: Answers) -> float:
        """How often both give the same token."""
        where = one[..., LOSS] != 0
        return float((one[..., CHOICE] == other[..., CHOICE])[where].mean())

    # Checks and words -------------------------------------------------------------------------------

    def check_output(self, output: Any, batch: Batch, role: str) -> None:
        """Refuse what is no logits ``(N, L, V)`` of the shared vocabulary."""
        assert batch.target is not None
        wanted = (*batch.target.shape, self.vocabulary)
        logits = first_tensor(output)
        if logits is None or tuple(logits.shape) != wanted:
            got = tuple(logits.shape) if logits is not None else type(output).__name__
            raise UserError(
                f"{role}.model",
                f"expected logits {wanted} for {wanted[2]:,} tokens of the vocabulary, got {got}",
            )

    def check_teacher(self, answers: Answers, part: TokenSet) -> float:
        """The teacher's perplexity; one that knows no more than how many tokens there are is refused."""
        if not np.isfinite(answers).all():
            raise UserError("teacher", "expected finite losses, got NaN or infinity on validation")
        found = self.value(answers, part)
        if found >= self.vocabulary:
            raise UserError(
                "teacher",
                f"expected a perplexity below the {self.vocabulary:,} of a random choice, got {found:,.0f} "
                "on validation; check its weights and its tokenizer",
            )
        return found

    def describe_data(self, train: TokenSet) -> str:
        """Rows and predictions, in words."""
        share = train.tokens / (len(train) * train.length)
        return f"{train.tokens:,} learnt tokens in rows of {train.length} ({share:.0%} learnt)"

    def describe_input(self, role: str) -> str:
        """How ``role`` wants its text."""
        del role
        return f"{len(self.tokenizer):,} tokens of {type(self.tokenizer).__name__}"

    def one_input(self, role: str, train: TokenSet) -> OneInput:
        """The first tokens of a training row."""
        del role
        samples, _, _ = train.__getitems__([0])
        return {name: tensor[:, :MEASURED_TOKENS] for name, tensor in samples.items()}

    # What is kept and told --------------------------------------------------------------------------

    def keep(self, model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the weights, and beside them the student in Hugging Face layout (``student/``).

        A student of which updates learnt is written whole; the updates alone stand in ``adapter/``. One that
        its configuration does not describe (parts of it went) has no such layout: no loader could read it.
        """
        save_weights(model, path, metadata)
        if hasattr(model, "save_pretrained"):
            whole = merged(model)
            if says_all(whole):
                save_huggingface(whole, self.tokenizer, path.parent / "student")
            save_adapters(model, path.parent / "adapter")

    def evidence(self, answers: Mapping[str, Answers], part: TokenSet, temperature: float) -> dict[str, Any]:
        """How far from the teacher, and how often the same, by position and by frequency of the token."""
        del temperature
        if "teacher" not in answers or self.teacher is None:
            return {}
        return {"divergences": divergences(answers, part, self.frequencies, self.vocabulary)}


def _logits(model: nn.Module, batch: Batch, role: str) -> Tensor:
    """Logits of the predictions that count, ``(predictions, V)`` float32."""
    answer = ask(model, batch.input(role))
    logits = answer.output if isinstance(answer, Signals) else first_tensor(answer)
    assert logits is not None, "a language model gives logits"
    return logits[batch.where].float()
