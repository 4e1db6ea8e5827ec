"""Attention of image networks with fewer heads than it was made with.

``nn.MultiheadAttention`` takes it that all heads together are as wide as its input. Where heads are gone,
:class:`FewerHeads` computes what is left from the same tensors under the same names; timm's attention only
has to be told their number.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

__all__ = ["FewerHeads", "fit_heads", "is_packed", "open_heads"]


class FewerHeads(nn.MultiheadAttention):
    """Self-attention of any number of heads, in the place of ``nn.MultiheadAttention``.

    Args are those of the base class; instances are made of ones of it by :func:`fit_heads`.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *masks: object, **options: object
    ) -> tuple[Tensor, None]:
        """Answer without weights.

        Args:
            query: ``(N, L, E)``.
            key: The same.
            value: The same.
            masks: None of them.
            options: Of the base class; masks are refused.

        Returns:
            ``(N, L, E)`` and None.

        Raises:
            ValueError: If key and value are others, or there are masks.
        """
        given = [*masks, options.get("key_padding_mask"), options.get("attn_mask")]
        if key is not query or value is not query or any(isinstance(one, Tensor) for one in given):
            raise ValueError("expected self-attention without masks where heads are gone")
        assert isinstance(self.in_proj_weight, Tensor)
        packed = linear(query, self.in_proj_weight, self.in_proj_bias)  # (N, L, 3 * heads * size)
        queries, keys, values = packed.reshape(*packed.shape[:2], 3, self.num_heads, self.head_dim).permute(
            2, 0, 3, 1, 4
        )
        dropout = self.dropout if self.training else 0.0
        heads = scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
        return self.out_proj(heads.transpose(1, 2).flatten(2)), None


def is_packed(module: nn.Module) -> bool:
    """Whether a module is attention like timm's: one projection ``qkv``, and ``proj`` that reads heads."""
    parts = (getattr(module, "qkv", None), getattr(module, "proj", None))
    numbers = all(
        isinstance(getattr(module, name, None), int) for name in ("num_heads", "head_dim", "attn_dim")
    )
    return numbers and all(isinstance(part, nn.Linear) for part in parts)


def fit_heads(model: nn.Module) -> None:
    """Tell every attention in ``model`` how many heads its tensors hold, in place."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and isinstance(module.in_proj_weight, Tensor):
            heads = module.in_proj_weight.shape[0] // (3 * module.head_dim)
            if heads * module.head_dim != module.embed_dim:
                module.num_heads = heads
                _open(module)
        elif is_packed(module):
            packed: Any = module
            packed.attn_dim = packed.qkv.out_features // 3
            packed.num_heads = packed.attn_dim // packed.head_dim


def open_heads(model: nn.Module) -> None:
    """Let every self-attention call ``out_proj`` as a module, so that it can be hooked, in place."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and module.batch_first and module._qkv_same_embed_dim:
            _open(module)


def _open(module: nn.MultiheadAttention) -> None:
    module.__class__ = FewerHeads
    module._qkv_same_embed_dim = False  # layers around it must not read its tensors themselves
