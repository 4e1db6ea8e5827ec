"""What can be matched, as pure functions ``name(student, teacher, *, option, where) -> Tensor``.

``__all__`` is the list of losses that a recipe may name; their options are their signatures. This package
imports torch and nothing else.
"""

from potstill.losses._declare import LossSpec as LossSpec
from potstill.losses._declare import Range as Range
from potstill.losses._declare import spec_of as spec_of
from potstill.losses.answered import response, teacher_boxes
from potstill.losses.attention import attention_transfer
from potstill.losses.classes import decoupled_kl, dist
from potstill.losses.contrastive import contrastive
from potstill.losses.detection import bounded_regression, weighted_classes, weighted_scores
from potstill.losses.distributions import channel_distribution
from potstill.losses.divergences import generalized_js, reverse_kl, skew_kl, skew_reverse_kl, total_variation
from potstill.losses.factors import factor_transfer
from potstill.losses.features import feature_cosine, feature_mse
from potstill.losses.gradients import gradient_attention
from potstill.losses.images import image_l1, perceptual
from potstill.losses.logits import hard_cross_entropy, kl, logit_mse, probability_mse, soft_cross_entropy
from potstill.losses.regions import region_hint
from potstill.losses.relations.channels import batch_channel_correlation, channel_correlation
from potstill.losses.relations.correlation import correlation_congruence
from potstill.losses.relations.distances import rkd_angle, rkd_distance
from potstill.losses.relations.gram import fsp, gram
from potstill.losses.relations.layers import layer_correlation
from potstill.losses.relations.probabilistic import probabilistic_transfer
from potstill.losses.relations.selectivity import neuron_selectivity
from potstill.losses.relations.similarity import similarity_preserving
from potstill.losses.sparsity import activation_boundary, activation_pattern
from potstill.losses.transformers import attention_maps, hidden_states, minilm_relation
from potstill.losses.variational import variational_information

__all__ = [
    "activation_boundary",
    "activation_pattern",
    "attention_maps",
    "attention_transfer",
    "batch_channel_correlation",
    "bounded_regression",
    "channel_correlation",
    "channel_distribution",
    "contrastive",
    "correlation_congruence",
    "decoupled_kl",
    "dist",
    "factor_transfer",
    "feature_cosine",
    "feature_mse",
    "fsp",
    "generalized_js",
    "gradient_attention",
    "gram",
    "hard_cross_entropy",
    "hidden_states",
    "image_l1",
    "kl",
    "layer_correlation",
    "logit_mse",
    "minilm_relation",
    "neuron_selectivity",
    "perceptual",
    "probabilistic_transfer",
    "probability_mse",
    "region_hint",
    "response",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "skew_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "teacher_boxes",
    "total_variation",
    "variational_information",
    "weighted_classes",
    "weighted_scores",
]
