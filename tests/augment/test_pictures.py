"""``views.png``: what the networks will see, before a run and in its report."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from potstill.assembly.load import load_experiment, search_path
from potstill.augment import AugmentConfig
from potstill.config import load
from potstill.errors import UserError
from potstill.run import run
from potstill.views import CAPTION, GAP, VIEWS, write_views

MIXED = "augment={crop: 1, mixup: {alpha: 1, probability: 0.5}, cutmix: 1}"


def test_a_dry_run_draws_the_views_and_the_run_may_follow(tiny: Any, tmp_path: Path) -> None:
    lines: list[str] = []

    def go(**options: Any) -> Any:
        overrides = [MIXED, "train.epochs=1"]
        return run(
            tiny.recipe,
            data=tiny.root,
            out=tmp_path / "run",
            overrides=overrides,
            echo=lines.append,
            **options,
        )

    go(dry=True)
    drawn = tmp_path / "run" / "views.png"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["views.png"]
    assert f"views: {drawn}" in lines
    go(dry=True)
    before = drawn.read_bytes()
    assert go(control=False).data
    assert drawn.read_bytes() == before
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What the networks saw" in page
    assert base64.b64encode(before).decode() in page
    with pytest.raises(UserError, match="belongs to a run already"):
        go()


def test_other_files_are_left_alone(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    lines: list[str] = []
    run(tiny.recipe, data=tiny.root, out=tmp_path / "run", overrides=[MIXED], dry=True, echo=lines.append)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]
    assert not any(line.startswith("views:") for line in lines)


def test_the_first_column_is_the_data_and_the_others_are_its_views(tiny: Any, tmp_path: Path) -> None:
    experiment = load_experiment(load(tiny.recipe, ["augment.flip=1"]), search_path(tiny.root))
    assert write_views(experiment, tmp_path / "views.png")
    sheet = np.asarray(Image.open(tmp_path / "views.png").convert("L"))
    side, scale = 72, 12
    assert sheet.shape == (3 * (side + CAPTION + GAP) + GAP, (1 + VIEWS) * (side + GAP) + GAP)
    for row in range(3):
        top = GAP + row * (side + CAPTION + GAP)
        position = int(np.argmax(experiment.splits.train.labels.numpy() == row))
        expected = experiment.splits.train.images([position])[0, 0].numpy()
        for column in range(1 + VIEWS):
            left = GAP + column * (side + GAP)
            cell = sheet[top : top + side : scale, left : left + side : scale]
            wanted = expected if column == 0 else expected[:, ::-1]
            assert np.abs(cell.astype(int) - wanted).max() <= 1


def test_columns_are_as_wide_as_their_captions(tiny: Any, tmp_path: Path) -> None:
    names = ["a class of long name", "an even longer class that has to end in dots", "left"]
    (tiny.data / "classes.txt").write_text("\n".join(names))
    experiment = load_experiment(load(tiny.recipe, [MIXED]), search_path(tiny.root))
    assert write_views(experiment, tmp_path / "views.png")
    sheet = np.asarray(Image.open(tmp_path / "views.png").convert("L"))
    wide = (sheet.shape[1] - GAP) // (1 + VIEWS) - GAP
    assert sheet.shape == (3 * (72 + 2 * CAPTION + GAP) + GAP, (1 + VIEWS) * (wide + GAP) + GAP)
    longest = ImageDraw.Draw(Image.new("L", (1, 1))).textlength(".99 an even longer class t...")
    assert 72 < wide <= longest + 8
    for column in range(1 + VIEWS):  # no letter reaches the gap before the next picture
        right = GAP + column * (wide + GAP) + wide
        assert sheet[:, right + 1 : right + GAP].min() == 255


def test_nothing_is_drawn_where_nothing_is_augmented(tiny: Any, tmp_path: Path) -> None:
    experiment = load_experiment(load(tiny.recipe), search_path(tiny.root))
    assert experiment.recipe.augment == AugmentConfig()
    assert not write_views(experiment, tmp_path / "views.png")
    assert not (tmp_path / "views.png").exists()
