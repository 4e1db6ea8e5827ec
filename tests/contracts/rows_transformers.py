"""Contract rows: inside a transformer."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.contracts.row import Pair, Row, tokens


def attention(count: int = 6, heads: tuple[int, int] = (2, 2)) -> Pair:
    """Attention probabilities ``(N, heads, 3, 3)``, float64."""
    generator = torch.Generator().manual_seed(4)

    def probabilities(heads: int) -> Tensor:
        scores = torch.randn(count, heads, 3, 3, generator=generator, dtype=torch.float64)
        return (2 * scores).softmax(dim=-1)

    return probabilities(heads[0]), probabilities(heads[1])


def fused(count: int = 6) -> Pair:
    """Queries, keys and values side by side, ``(N, 3, 12)``, float64."""
    parts = [tokens(3 * count)[side].reshape(count, 3, 12) for side in (0, 1)]
    return parts[0], parts[1]


ROWS: dict[str, Row] = {
    "attention_maps": Row(attention),
    "attention_maps mse": Row(attention, {"variant": "mse"}),
    "hidden_states": Row(tokens),
    "minilm_relation": Row(tokens),
    "minilm_relation heads": Row(tokens, {"relation_heads": 2}),
    "minilm_relation qkv": Row(fused, {"split": "qkv", "relation_heads": 4}),
}
