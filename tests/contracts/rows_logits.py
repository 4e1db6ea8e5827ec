"""Contract rows: what a network answers."""

from __future__ import annotations

from tests.contracts.row import Row, logits, maps

ROWS: dict[str, Row] = {
    "kl": Row(logits, inductor=True),
    "kl standardize": Row(logits, {"standardize": True, "temperature": 2.0}),
    "kl T1": Row(logits, {"temperature": 1.0}),
    "soft_cross_entropy": Row(logits),
    "soft_cross_entropy T1": Row(logits, {"temperature": 1.0}),
    "hard_cross_entropy": Row(logits, teacher_gradient=False),
    "probability_mse": Row(logits),
    "logit_mse": Row(logits),
    "image_l1": Row(logits),
    "perceptual": Row(maps),
}
