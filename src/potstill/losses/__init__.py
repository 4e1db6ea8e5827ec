"""What can be matched, as pure functions ``name(student, teacher, *, option, where) -> Tensor``.

``__all__`` is the list of losses that a recipe may name; their options are their signatures. This package
imports torch and nothing else.
"""

from potstill.losses._declare import LossSpec as LossSpec
from potstill.losses._declare import Range as Range
from potstill.losses._declare import spec_of as spec_of
from potstill.losses.attention import attention_transfer
from potstill.losses.divergences import generalized_js, reverse_kl, skew_kl, skew_reverse_kl, total_variation
from potstill.losses.features import feature_cosine, feature_mse
from potstill.losses.logits import hard_cross_entropy, kl, logit_mse, probability_mse, soft_cross_entropy
from potstill.losses.sparsity import activation_boundary, activation_pattern

__all__ = [
    "activation_boundary",
    "activation_pattern",
    "attention_transfer",
    "feature_cosine",
    "feature_mse",
    "generalized_js",
    "hard_cross_entropy",
    "kl",
    "logit_mse",
    "probability_mse",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "total_variation",
]
