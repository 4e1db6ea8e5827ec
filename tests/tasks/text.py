"""A whole project of texts, small enough to run in seconds: words, a BERT of four layers, data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["good", "fine", "bad", "poor", "film", "plot", "the", "a", "very", "and"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tokenizer_in(folder: Path, words: list[str] | None = None) -> Any:
    """A tokenizer of whole words, saved in ``folder``."""
    import transformers

    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *(words or WORDS)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    made.save_pretrained(folder)
    return made


def bert_in(folder: Path, layers: int = 4, width: int = 16, classes: int = 2) -> Any:
    """A BERT with random weights and its tokenizer, saved in ``folder``."""
    import transformers

    torch.manual_seed(layers)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=32,
        num_labels=classes,
    )
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer_in(folder)
    return model


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences of 2 to 8 words, good or bad by one of them."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label = number % 2
        words = rng.choice(WORDS[4:], int(rng.integers(1, 8))).tolist()
        words.insert(
            int(rng.integers(0, len(words) + 1)), str(rng.choice(WORDS[2:4] if label else WORDS[:2]))
        )
        rows.append({"text": " ".join(words), "label": label})
    return rows


def project(root: Path) -> Path:
    """Folder with ``data`` (jsonl) and ``bert``."""
    (root / "data").mkdir(parents=True)
    for part, count, seed in (("train", 96, 0), ("dev", 32, 1), ("test", 48, 2)):
        lines = [json.dumps(row) for row in sentences(count, seed)]
        (root / "data" / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    bert_in(root / "bert")
    return root


TEACHER: dict[str, Any] = {
    "task": "text_classification",
    "data": {"kind": "jsonl", "path": "data", "max_length": 16},
    "scheme": "labels",
    "student": {"model": "transformers:bert"},
    "train": {
        "epochs": 8,
        "batch_size": 16,
        "optimizer": "adamw",
        "learning_rate": 5e-3,
        "precision": "float32",
    },
}


def student_of(**changes: Any) -> dict[str, Any]:
    """A recipe whose teacher is the run ``taught``."""
    return {
        **TEACHER,
        "scheme": "offline",
        "teacher": {"model": "transformers:taught"},
        "student": {"model": "teacher", "init": {"layers": [1, 3]}},
        "train": {**TEACHER["train"], "epochs": 1},
        **changes,
    }
