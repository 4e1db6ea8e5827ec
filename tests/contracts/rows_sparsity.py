"""Contract rows: which neurons fire."""

from __future__ import annotations

from tests.contracts.row import Row, maps, tokens, vectors

ROWS: dict[str, Row] = {
    "activation_boundary": Row(maps, teacher_gradient=False),
    "activation_boundary margin": Row(vectors, {"margin": 0.3}, teacher_gradient=False),
    "activation_pattern": Row(maps, teacher_gradient=False),
    "activation_pattern sharp": Row(tokens, {"sharpness": 4.0}, teacher_gradient=False),
}
