"""Contract rows: divergences of probabilities."""

from __future__ import annotations

from tests.contracts.row import Row, logits

ROWS: dict[str, Row] = {
    "reverse_kl": Row(logits),
    "reverse_kl T4": Row(logits, {"temperature": 4.0}),
    "skew_kl": Row(logits),
    "skew_kl without skew": Row(logits, {"skew": 0.0}),
    "skew_reverse_kl": Row(logits),
    "skew_reverse_kl without skew": Row(logits, {"skew": 0.0}),
    "generalized_js": Row(logits),
    "generalized_js forward": Row(logits, {"beta": 0.0}),
    "generalized_js reverse": Row(logits, {"beta": 1.0}),
    "generalized_js normalized": Row(
        logits, {"beta": 0.1, "normalized": True, "temperature": 2.0, "temperature_squared": True}
    ),
    "total_variation": Row(logits),
}
