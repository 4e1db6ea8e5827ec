"""Contract rows: where a network looks."""

from __future__ import annotations

from tests.contracts.row import Row, maps

ROWS: dict[str, Row] = {
    "attention_transfer": Row(maps, inductor=True),
    "attention_transfer paper": Row(maps, {"variant": "paper"}),
}
