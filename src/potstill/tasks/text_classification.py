"""Text classification: each network encodes the same texts with its own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.augment import AugmentConfig, TextAugment
from potstill.batch import Batch
from potstill.data.dataset import LabelledSet
from potstill.data.texts import TextSet
from potstill.models.architecture import says_all
from potstill.models.weights import save_weights
from potstill.tasks.classes import Classifier

__all__ = ["TextClassification", "covering_token"]

LAYOUT = "student"
"""Folder of a run that holds the student in Hugging Face layout."""


def covering_token(tokenizer: Any) -> int | None:
    """What covers a token: the tokenizer's mask, else its unknown token; ``None`` where it has neither."""
    number: int | None = tokenizer.mask_token_id
    return tokenizer.unk_token_id if number is None else number


@dataclass(frozen=True, kw_only=True)
class TextClassification(Classifier):
    """Batches, supervised loss and predictions of a text classifier.

    A batch is padded to its longest text. Networks take ``input_ids`` and ``attention_mask``, both
    ``(N, L)``, by name, and answer with logits or an object that has ``logits``.

    Attributes:
        tokenizers: The tokenizer of each role (``teacher``, ``student``), of the ``transformers`` library;
            roles with one tokenizer share their inputs.
        max_length: Tokens of a text beyond which it is cut.
        augmentation: What training batches are augmented by, once :meth:`seeded`.
        augment: What covers tokens of training batches, ``None`` for nothing.
        device: Where batches go.
    """

    tokenizers: Mapping[str, Any]
    max_length: int = 128
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    augment: TextAugment | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    samples = "texts"
    partners = None

    def placed(self, device: torch.device, *, channels_last: bool) -> TextClassification:
        """The same task, its batches on ``device``."""
        del channels_last  # of images
        return replace(self, device=device)

    def seeded(self, seed: int, samples: int) -> TextClassification:
        """The same task with the augmentation of a seed."""
        del samples
        coverings = self.augmentation.coverings()
        return replace(self, augment=TextAugment(coverings, seed) if coverings else None)

    def training_batch(self, texts: Sequence[str], labels: Tensor, index: Tensor, view: int) -> Batch:
        """A training batch: networks with one tokenizer see the same tokens covered.

        Args:
            texts: ``N`` texts.
            labels: ``(N,)`` int64.
            index: ``(N,)`` positions in the data set.
            view: Number of the view.

        Returns:
            The batch; each role sees ``{"input_ids": (N, L), "attention_mask": (N, L)}``.
        """
        return self._batch(texts, labels, index, view, self.augment)

    def plain_batch(self, texts: Sequence[str], labels: Tensor, index: Tensor) -> Batch:
        """A batch for evaluation, with nothing covered."""
        return self._batch(texts, labels, index, 0, None)

    def _batch(
        self, texts: Sequence[str], labels: Tensor, index: Tensor, view: int, augment: TextAugment | None
    ) -> Batch:
        made: dict[int, dict[str, Tensor]] = {}
        for tokenizer in self.tokenizers.values():
            if id(tokenizer) not in made:
                made[id(tokenizer)] = self._encoded(tokenizer, texts, index, view, augment)
        inputs = {role: made[id(tokenizer)] for role, tokenizer in self.tokenizers.items()}
        return Batch(inputs, labels.to(self.device), None, index.to(self.device), view)

    def _encoded(
        self, tokenizer: Any, texts: Sequence[str], index: Tensor, view: int, augment: TextAugment | None
    ) -> dict[str, Tensor]:
        encoded = tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        ids = encoded["input_ids"]
        if augment is not None:
            may = encoded["special_tokens_mask"] == 0
            replacement = covering_token(tokenizer)
            assert replacement is not None, "a recipe that covers tokens was checked for it"
            ids = augment(ids, may, index, view, replacement=replacement)
        return {"input_ids": ids.to(self.device), "attention_mask": encoded["attention_mask"].to(self.device)}

    # Words and files --------------------------------------------------------------------------------

    def describe_data(self, train: TextSet) -> str:
        """Classes and the length of a text of median length."""
        lengths = self.one_input("student", train)["input_ids"].shape[1]
        return f"{self.num_classes} classes, texts of {lengths} tokens (median, the student's)"

    def describe_input(self, role: str) -> str:
        """The tokenizer and where texts are cut."""
        tokenizer = self.tokenizers[role]
        return f"{type(tokenizer).__name__} of {len(tokenizer):,} tokens, at most {self.max_length} a text"

    def one_input(self, role: str, train: TextSet) -> Mapping[str, Tensor]:
        """A text of median length."""
        inputs = self.plain_batch(*train.__getitems__([train.typical()])).input(role)
        assert isinstance(inputs, Mapping), "texts are tokens and their mask"
        return inputs

    def keep(self, model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
        """The weights; of a network of the ``transformers`` library also its layout, with the tokenizer.

        One that its configuration does not describe (heads went) has none: no loader could read it.
        """
        save_weights(model, path, {**metadata, "classes": "\n".join(self.class_names)})
        save = getattr(model, "save_pretrained", None)
        if save is None or not says_all(model):
            return
        config: Any = model.config
        config.id2label = dict(enumerate(self.class_names))
        config.label2id = {name: label for label, name in enumerate(self.class_names)}
        save(path.parent / LAYOUT)
        self.tokenizers["student"].save_pretrained(path.parent / LAYOUT)

    def shown(self, part: LabelledSet, position: int) -> Mapping[str, str]:
        """The text."""
        assert isinstance(part, TextSet)
        return {"text": part.texts[position]}
