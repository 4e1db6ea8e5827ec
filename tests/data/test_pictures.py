"""Pictures of a generator: pairs that fit, what is lost of a file, arrays without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data.pictures import PictureConfig, load_pictures
from potstill.errors import UserError

PARTS = {"train": 3, "val": 2, "test": 2}


def save(folder: Path, width: int = 12, height: int = 10, suffix: str = "png") -> None:
    """An image of one colour in each file, lighter by its number."""
    for part, count in PARTS.items():
        (folder / part).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (width, height), (50 * number,) * 3)
            image.save(folder / part / f"{number}.{suffix}")


def test_true_images_of_another_size_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "inputs")
    save(tmp_path / "larger", 24, 20)
    wanted = r"data\.targets: train: .* the first is 24x20 and its input 12x10, in all 0, 1, 2$"
    with pytest.raises(UserError, match=wanted):
        load_pictures(PictureConfig(path="inputs", targets="larger"), search=[tmp_path])


def test_pairs_may_have_other_suffixes(tmp_path: Path) -> None:
    """``a.k.png`` stands before ``a.png``, ``a.k.bmp`` behind ``a.bmp``."""
    for folder, suffix in (("inputs", "bmp"), ("targets", "png")):
        save(tmp_path / folder, suffix=suffix)
        Image.new("RGB", (12, 10), (200,) * 3).save(tmp_path / folder / "train" / f"0.k.{suffix}")
    splits = load_pictures(PictureConfig(path="inputs", targets="targets"), search=[tmp_path])
    inputs, targets, _ = splits.train.__getitems__(range(len(splits.train)))
    assert inputs[:, 0, 0, 0].tolist() == [0, 200, 50, 100]
    assert torch.equal(inputs, targets)


@pytest.mark.parametrize(("folder", "where"), [("inputs", "path"), ("targets", "targets")])
def test_two_files_of_one_name_are_refused(tmp_path: Path, folder: str, where: str) -> None:
    save(tmp_path / "inputs")
    save(tmp_path / "targets")
    Image.new("RGB", (12, 10)).save(tmp_path / folder / "train" / "0.bmp")
    with pytest.raises(UserError, match=rf"data\.{where}: train: two files are called 0$"):
        load_pictures(PictureConfig(path="inputs", targets="targets"), search=[tmp_path])


def test_transparency_of_a_palette_is_noted(tmp_path: Path) -> None:
    save(tmp_path / "inputs")
    path = tmp_path / "inputs" / "train" / "0.png"
    Image.new("P", (12, 10)).save(path, transparency=0)
    notes = load_pictures(PictureConfig(path="inputs"), search=[tmp_path]).notes
    assert notes == ["1 of 7 images have an alpha channel, which is left out"]


def save_arrays(folder: Path, *shape: int, values: str = "uint8", highest: float = 1.0) -> None:
    folder.mkdir()
    for part, count in PARTS.items():
        array = np.random.default_rng(0).uniform(0, highest, (count, *shape))
        np.save(folder / f"{part}_images.npy", array.astype(values))


def test_arrays_need_no_labels(tmp_path: Path) -> None:
    save_arrays(tmp_path / "bytes", 10, 12, 3, highest=255)
    splits = load_pictures(PictureConfig(kind="arrays", path="bytes"), search=[tmp_path])
    stored = np.load(tmp_path / "bytes" / "train_images.npy").transpose(0, 3, 1, 2)
    images, targets, _ = splits.train.__getitems__([2, 0])
    assert np.array_equal(images.numpy(), stored[[2, 0]])
    assert targets is None
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [3, 2, 2]


@pytest.mark.parametrize(
    ("shape", "values", "highest", "match"),
    [
        ((3, 8, 8), "float32", 255.0, r"in 0\.\.1, got \(3, 3, 8, 8\) in 0\.\d+\.\.2\d\d"),
        ((3, 8, 8), "float32", float("nan"), r"got \(3, 3, 8, 8\) in nan\.\.nan"),
        ((4, 8, 8), "float32", 1.0, r"expected floats \(N, 1\|3, H, W\)"),
        ((8, 8, 3), "uint16", 60000.0, r"got \(3, 8, 8, 3\) uint16"),
        ((8, 8, 4), "uint8", 255.0, r"got \(3, 8, 8, 4\) uint8"),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    tmp_path: Path, shape: tuple[int, ...], values: str, highest: float, match: str
) -> None:
    folder = tmp_path / "odd"
    if highest == highest:
        save_arrays(folder, *shape, values=values, highest=highest)
    else:
        folder.mkdir()
        np.save(folder / "train_images.npy", np.full((3, *shape), np.nan, np.float32))
    with pytest.raises(UserError, match=rf"data\.path: .*odd: train: .*{match}"):
        load_pictures(PictureConfig(kind="arrays", path="odd"), search=[tmp_path])
