"""Five kinds of data, one way to read them; cuts that are seeded and stratified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from potstill.data import DataConfig, load_data
from potstill.data.load import complete
from potstill.data.own import from_datasets
from potstill.errors import UserError


def save_arrays(folder: Path, *parts: str, colour: bool = False, count: int = 40) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, 4, 4, 3) if colour else (count, 4, 4)
    for number, part in enumerate(parts):
        rng = np.random.default_rng(number)
        np.save(folder / f"{part}_images.npy", rng.integers(0, 255, shape).astype(np.uint8))
        np.save(folder / f"{part}_labels.npy", np.arange(count) % 4)


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    save_arrays(tmp_path / "data", "train", "val", "test", colour=True)
    (tmp_path / "data" / "classes.txt").write_text("a\nb\nc\nd")
    splits = load_data(DataConfig(path="data"), search=[tmp_path])
    assert splits.train.class_names == ("a", "b", "c", "d")
    assert (splits.train.channels, splits.train.size) == (3, (4, 4))
    stored = np.load(tmp_path / "data" / "train_images.npy")
    images, labels, index = splits.train.__getitems__([3, 1])
    assert torch.equal(images, torch.from_numpy(stored[[3, 1]]).permute(0, 3, 1, 2))
    assert labels.tolist() == [3, 1]
    assert index.tolist() == [3, 1]
    assert splits.notes == []


def test_an_archive_reads_like_a_folder(tmp_path: Path) -> None:
    save_arrays(tmp_path / "data", "train", "test")
    arrays = {path.stem: np.load(path) for path in (tmp_path / "data").glob("*.npy")}
    np.savez_compressed(tmp_path / "data.npz", classes=np.array(["p", "q", "r", "s"]), **arrays)
    one = load_data(DataConfig(path="data"), search=[tmp_path])
    two = load_data(DataConfig(path="data.npz"), search=[tmp_path])
    assert torch.equal(one.train.images([0, 5]), two.train.images([0, 5]))
    assert two.train.class_names == ("p", "q", "r", "s")


def test_missing_parts_are_cut_stratified_seeded_and_disjoint(tmp_path: Path) -> None:
    save_arrays(tmp_path / "data", "train", count=200)
    config = DataConfig(path="data", validation=0.2)
    splits = load_data(config, search=[tmp_path])
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [128, 32, 40]
    for part in (splits.train, splits.validation, splits.test):
        counts = np.bincount(part.labels.numpy())
        assert counts.max() - counts.min() <= 1
    rows = [
        part.images(range(len(part))).flatten(1) for part in (splits.train, splits.validation, splits.test)
    ]
    together = torch.cat(rows)
    assert len(torch.unique(together, dim=0)) == 200
    again = load_data(config, search=[tmp_path])
    assert torch.equal(again.validation.images(range(32)), splits.validation.images(range(32)))
    other = load_data(DataConfig(path="data", validation=0.2, split_seed=1), search=[tmp_path])
    assert not torch.equal(other.validation.images(range(32)), splits.validation.images(range(32)))
    assert len(splits.notes) == 2


def test_a_limit_leaves_every_class_its_share(tmp_path: Path) -> None:
    save_arrays(tmp_path / "data", "train", "test", count=200)
    splits = load_data(DataConfig(path="data", limit=20, validation=40), search=[tmp_path])
    assert np.bincount(splits.train.labels.numpy()).tolist() == [5, 5, 5, 5]
    assert len(splits.validation) == 40
    assert any("only 20 of 160" in note for note in splits.notes)


def test_image_folders_resize_on_request(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                picture = Image.fromarray(np.full((10 + number, 12, 3), 50 * number, np.uint8))
                picture.save(folder / f"{number}.png")
    splits = load_data(DataConfig(kind="folder", path="pets", size=8), search=[tmp_path])
    assert splits.train.images([0, 1, 2, 3]).shape == (4, 3, 8, 8)
    assert splits.train.class_names == ("cat", "dog")
    assert splits.train.images([2])[0, 0, 0, 0] == 100


def test_torchvision_sets_are_read_by_name(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    fake = {"kind": "torchvision", "name": "FakeData", "arguments": {"size": 30}}
    with pytest.raises(UserError, match=r"data\.arguments"):
        load_data(DataConfig(**fake), search=[tmp_path])  # FakeData has neither root nor train
    with pytest.raises(UserError, match=r"data\.name: torchvision has no data set 'CIFAR01'; did you mean"):
        load_data(DataConfig(kind="torchvision", name="CIFAR01"), search=[tmp_path])


def write_mnist(root: Path, *, count: int = 30) -> None:
    """MNIST's own file format, with random pictures."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = rng.integers(0, 255, (count, 28, 28)).astype(np.uint8)
        header = b"".join(number.to_bytes(4, "big") for number in (2051, count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = b"".join(number.to_bytes(4, "big") for number in (2049, count))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


def test_a_torchvision_set_from_local_files(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    write_mnist(tmp_path)
    splits = load_data(DataConfig(kind="torchvision", name="MNIST"), search=[tmp_path])
    assert splits.train.images([0, 1]).shape == (2, 1, 28, 28)
    assert splits.train.class_names[3] == "3 - three"
    assert len(splits.test) == 30


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stored", ["disk", "parquet"])
def test_a_hugging_face_set_from_a_local_path(tmp_path: Path, stored: str) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "id": datasets.Value("int64"),
        }
    )
    parts = {}
    for part in ("train", "test"):
        rows = {
            "img": [Image.fromarray(np.full((4, 4, 3), number, np.uint8)) for number in range(12)],
            "label": [number % 2 for number in range(12)],
            "id": list(range(12)),
        }
        parts[part] = datasets.Dataset.from_dict(rows, features=features)
    if stored == "disk":
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "hub"))
    else:
        (tmp_path / "hub").mkdir()
        for part, rows in parts.items():
            rows.to_parquet(str(tmp_path / "hub" / f"{part}-00000.parquet"))
    splits = load_data(DataConfig(kind="huggingface", path="hub", validation=4), search=[tmp_path])
    assert splits.test.class_names == ("no", "yes")
    assert splits.test.images([7])[0, 0, 0, 0] == 7
    assert splits.test.labels.tolist() == [0, 1] * 6
    with pytest.raises(UserError, match=r"data\.label_column: no column 'lable'; did you mean 'label'"):
        load_data(DataConfig(kind="huggingface", path="hub", label_column="lable"), search=[tmp_path])


def test_own_sets_by_file_and_attribute(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n\n\n"
        "def make(count=24):\n"
        "    labels = torch.arange(count) % 3\n"
        "    part = TensorDataset(torch.rand(count, 3, 4, 4), labels)\n"
        "    return {'train': part, 'test': part}\n"
    )
    config = DataConfig(kind="own", path="mine.py:make", arguments={"count": 30}, validation=6)
    splits = load_data(config, search=[tmp_path])
    assert len(splits.train) == 24
    assert splits.train.images([0]).dtype == torch.float32
    with pytest.raises(UserError, match=r"data\.arguments: mine.py:make refuses them: .*many"):
        load_data(DataConfig(kind="own", path="mine.py:make", arguments={"many": 3}), search=[tmp_path])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Stream(), "expected a map-style data set"),
        ([], "got an empty data set"),
        ([1, 2, 3], r"expected samples \(image, label\), got int"),
        ([(torch.zeros(1, 2, 2), 0.5)] * 4, "expected one integer label"),
        ([(torch.zeros(1, 2, 2), 0)] * 4, "expected at least two classes"),
        ([(torch.zeros(1, 2, 2), -1), (torch.zeros(1, 2, 2), 1)], "expected labels 0 to 1, got -1 to 1"),
    ],
)
def test_sets_that_cannot_be_used_say_why(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_datasets({"train": given}, None, None, "")


def test_parts_that_do_not_fit_together() -> None:
    def part(side: int, classes: int) -> TensorDataset:
        return TensorDataset(torch.zeros(12, 1, side, side), torch.arange(12) % classes)

    found = from_datasets({"train": part(4, 2), "test": part(5, 2)}, None, None, "")
    with pytest.raises(UserError, match=r"expected images \(1, 4, 4\) as in training, got \(1, 5, 5\)"):
        complete(found, DataConfig())
    with pytest.raises(UserError, match="expected labels 0 to 1, got 0 to 2"):
        from_datasets({"train": part(4, 2), "test": part(4, 3)}, None, None, "")


def test_the_fingerprint_changes_with_any_content() -> None:
    images, labels = torch.zeros(10, 1, 2, 2), torch.arange(10) % 2
    prints = set()
    for change in range(3):
        other, marks = images.clone(), labels.clone()
        if change == 1:
            other[4, 0, 1, 1] = 1
        if change == 2:
            marks[4] = 1
        prints.add(
            from_datasets({"train": TensorDataset(other, marks)}, None, None, "")["train"].fingerprint()
        )
    assert len(prints) == 3


def test_the_real_cifar10(data_root: Path) -> None:
    splits = load_data(DataConfig(path="cifar10"), search=[data_root])
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [45_000, 5_000, 10_000]
    assert np.bincount(splits.validation.labels.numpy()).tolist() == [500] * 10
    assert splits.test.class_names[0] == "airplane"
