"""A classifier of texts as an ONNX file, with its tokenizer beside it, checked on real texts first."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from potstill._version import __version__
from potstill.deploy.export import (
    BATCHES,
    SAMPLES,
    Exported,
    check_classes,
    in_batches,
    require,
    write_model,
)
from potstill.files import write_atomic
from potstill.matching.taps import first_tensor

__all__ = ["TextRun", "export_text"]


class TextRun(Protocol):
    """What is exported: a loaded run, or anything with these."""

    @property
    def student(self) -> nn.Module:
        """The trained classifier, called with ``input_ids`` and ``attention_mask``."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of its classes."""

    @property
    def tokenizer(self) -> Any:
        """What cuts its texts."""

    def tokens(self, count: int) -> Sequence[Mapping[str, Tensor]]:
        """The first ``count`` test texts one by one: ``input_ids`` and ``attention_mask``, ``(1, L)``."""


class _Logits(nn.Module):
    """The network, with its inputs in order."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = first_tensor(self.student(input_ids=input_ids, attention_mask=attention_mask))
        assert logits is not None, "a classifier gives logits"
        return logits


def export_text(loaded: TextRun, path: Path) -> Exported:
    """Write an ONNX file for any number of texts of any length; its metadata states the classes.

    The graph takes ``input_ids`` and ``attention_mask``, int64 ``(N, L)``, and gives ``logits``
    ``(N, classes)``; the folder ``tokenizer`` beside the file holds what makes them of texts. Before the file
    gets its name, onnxruntime runs it at batch 1 and 7 on real texts, padded to the longest of each batch:
    every class must be the trained network's for that text alone, every logit within 1e-3 of their spread.

    Args:
        loaded: The student and what belongs to it.
        path: Where to.

    Raises:
        UserError: If a library is missing, the network cannot be exported (recurrent layers over packed
            texts cannot), or the check fails; then no file is left.
    """
    require()
    texts, padding = loaded.tokens(SAMPLES), int(loaded.tokenizer.pad_token_id)
    network = _Logits(copy.deepcopy(loaded.student).to("cpu")).eval()
    with torch.no_grad():
        expected = torch.cat([network(**text) for text in texts]).numpy()
    batches = {
        size: [_padded(texts[rows], padding) for rows in in_batches(len(texts), size)] for size in BATCHES
    }
    longest = sorted(texts, key=lambda text: text["input_ids"].shape[1])[-2:]
    metadata = {
        "potstill": __version__,
        "input": "input_ids, attention_mask: int64 (N, L), from the folder tokenizer beside this file",
        "classes": json.dumps(loaded.class_names, ensure_ascii=False),
    }
    with write_atomic(path) as aside:
        write_model(network, _padded(longest, padding), aside, metadata, dynamic=(0, 1))
        given = {
            size: [{name: tensor.numpy() for name, tensor in part.items()} for part in parts]
            for size, parts in batches.items()
        }
        difference = check_classes(expected, given, aside)
    loaded.tokenizer.save_pretrained(path.with_name("tokenizer"))
    return Exported(path, len(texts), difference)


def _padded(texts: Sequence[Mapping[str, Tensor]], padding: int) -> dict[str, Tensor]:
    """Texts ``(1, L)`` as one batch ``(N, longest)``, filled up at the right."""
    longest = max(text["input_ids"].shape[1] for text in texts)
    fill = {"input_ids": padding, "attention_mask": 0}
    return {
        name: torch.cat(
            [nn.functional.pad(text[name], (0, longest - text[name].shape[1]), value=value) for text in texts]
        )
        for name, value in fill.items()
    }
