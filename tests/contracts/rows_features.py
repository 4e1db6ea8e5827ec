"""Contract rows: intermediate features."""

from __future__ import annotations

from tests.contracts.row import Row, maps

ROWS: dict[str, Row] = {
    "feature_mse": Row(maps, inductor=True),
    "feature_cosine": Row(maps),
}
