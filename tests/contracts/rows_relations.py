"""Contract rows: relations between the samples of a batch."""

from __future__ import annotations

from tests.contracts.row import Row, maps, vectors

ROWS: dict[str, Row] = {
    "similarity_preserving": Row(maps),
    "rkd_distance": Row(vectors),
    "rkd_angle": Row(vectors),
    "correlation_congruence": Row(vectors),
    "correlation_congruence delta": Row(vectors, {"variant": "delta"}),
    "probabilistic_transfer": Row(vectors),
}
