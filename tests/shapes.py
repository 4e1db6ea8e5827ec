"""Images of bright shapes on dark ground, with their boxes as COCO json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64
NAMES = ("square", "disc")


def write_shapes(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write images and ``shapes.json``; squares are red, discs green. Returns the json."""
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for split, count in counts.items():
        for _ in range(count):
            number = len(images) + 1
            pixels = rng.integers(0, 40, (SIDE, SIDE, 3))
            for _ in range(rng.integers(1, 3)):
                side, label = int(rng.integers(14, 28)), int(rng.integers(0, 2))
                x, y = (int(rng.integers(0, SIDE - side)) for _ in range(2))
                rows, columns = np.mgrid[0:side, 0:side] - (side - 1) / 2
                inside = (rows**2 + columns**2 <= (side / 2) ** 2) | (label == 0)
                pixels[y : y + side, x : x + side, label][inside] = 230
                notes.append(
                    {
                        "id": len(notes) + 1,
                        "image_id": number,
                        "category_id": 3 + 4 * label,
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                    }
                )
            name = f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE, "split": split})
    categories = [{"id": 3 + 4 * place, "name": name} for place, name in enumerate(NAMES)]
    path = folder / "shapes.json"
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return path


def tiny(kind: str = "faster_rcnn", **more: Any) -> dict[str, Any]:
    """A detector of some ten thousand parameters, as a recipe's section."""
    arguments: dict[str, Any] = {
        "backbone": "mobilenet_v2",
        "strides": [8, 16],
        "channels": 32,
        "arguments": {"width_mult": 0.2},
    }
    if kind == "faster_rcnn":
        arguments |= {"hidden": 32, "regions": 50, "sampled": 32}
    if kind in ("faster_rcnn", "retinanet"):
        arguments |= {"anchors": [16, 24]}
    return {"model": f"potstill.models.detectors:{kind}", "arguments": {**arguments, **more}}
