"""Small classifiers of texts that know no attention: what a transformer can teach another kind of network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

__all__ = ["BiLSTM", "TextCNN"]


class BiLSTM(nn.Module):
    """An embedding, a bidirectional LSTM, and the maximum over the tokens.

    Args:
        num_classes: Number of classes.
        vocab_size: Size of the tokenizer's vocabulary.
        width: Of the embedding; the LSTM has as much in each direction.
        dropout: Of the embedding and of what the head sees.

    >>> ids = torch.ones(3, 5, dtype=torch.int64)
    >>> BiLSTM(2, 50, width=8)(ids, attention_mask=torch.ones_like(ids)).shape
    torch.Size([3, 2])
    """

    def __init__(self, num_classes: int, vocab_size: int, width: int = 128, dropout: float = 0.3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``(N, C)`` of token numbers ``(N, L)`` and which of them are there ``(N, L)``."""
        embedded = self.dropout(self.embedding(input_ids))  # (N, L, width)
        lengths = attention_mask.sum(dim=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=input_ids.shape[1]
        )
        return self.head(self.dropout(_largest(hidden, attention_mask)))  # type: ignore[no-any-return]


class TextCNN(nn.Module):
    """An embedding, convolutions over 3, 4 and 5 tokens, and the maximum over the tokens.

    Args:
        num_classes: Number of classes.
        vocab_size: Size of the tokenizer's vocabulary.
        width: Of the embedding and of each convolution.
        dropout: Of the embedding and of what the head sees.

    Reference:
        Kim, "Convolutional Neural Networks for Sentence Classification", 2014,
        https://arxiv.org/abs/1408.5882

    >>> ids = torch.ones(3, 5, dtype=torch.int64)
    >>> TextCNN(2, 50, width=8)(ids, attention_mask=torch.ones_like(ids)).shape
    torch.Size([3, 2])
    """

    def __init__(self, num_classes: int, vocab_size: int, width: int = 128, dropout: float = 0.3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, size, padding=size // 2) for size in (3, 4, 5)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(3 * width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``(N, C)`` of token numbers ``(N, L)`` and which of them are there ``(N, L)``."""
        embedded = self.dropout(self.embedding(input_ids)) * attention_mask[:, :, None]  # (N, L, width)
        turned = embedded.transpose(1, 2)
        length = input_ids.shape[1]  # an even convolution gives one more
        found = [relu(each(turned))[:, :, :length] for each in self.convolutions]
        hidden = torch.cat(found, dim=1).transpose(1, 2)
        return self.head(self.dropout(_largest(hidden, attention_mask)))  # type: ignore[no-any-return]


def _largest(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Maximum of ``(N, L, C)`` over the tokens that are there, ``(N, C)``."""
    return hidden.masked_fill(attention_mask[:, :, None] == 0, torch.finfo(hidden.dtype).min).amax(dim=1)
