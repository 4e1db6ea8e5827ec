"""Five kinds of data, one way to read them; cuts that are seeded and stratified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from potstill.data import DataConfig, load_data
from potstill.data.arrays import ArraySet
from potstill.data.files import load_folder
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


def folder_of(root: Path, *files: tuple[str, Image.Image]) -> Path:
    for name, picture in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / name)
    return root


GREY, COLOUR = Image.new("L", (6, 6), 90), Image.new("RGB", (6, 6), (1, 2, 3))


@pytest.mark.parametrize("size", [None, 4])
def test_grey_images_among_coloured_ones_get_three_channels(tmp_path: Path, size: int | None) -> None:
    files = [
        (f"{part}/{name}/{n}.png", GREY) for part in ("train", "test") for name in "ab" for n in range(9)
    ]
    folder_of(tmp_path / "grey", *files)
    found = load_folder(tmp_path / "grey", size)
    assert {part.channels for part in found.values()} == {1}
    folder_of(tmp_path / "mixed", *files, ("train/b/9.png", COLOUR))
    found = load_folder(tmp_path / "mixed", size)
    assert {part.channels for part in found.values()} == {3}
    assert found["train"].images([0, len(found["train"]) - 1]).shape[:2] == (2, 3)
    own = from_datasets({"train": [(GREY, 0), (COLOUR, 1)], "test": [(GREY, 0), (GREY, 1)]}, None, size, "")
    assert {part.channels for part in own.values()} == {3}


def test_folders_pass_over_what_is_hidden_and_know_classes_called_train(tmp_path: Path) -> None:
    vehicles = [(f"{name}/{n}.png", GREY) for name in ("bus", "train", ".trash") for n in range(9)]
    folder_of(tmp_path / "vehicles", *vehicles)
    (tmp_path / "vehicles" / "bus" / "._0.png").write_bytes(b"left by another system")
    (found,) = load_folder(tmp_path / "vehicles", None).values()
    assert found.class_names == ("bus", "train")
    assert len(found) == 18
    folder_of(tmp_path / "headless", ("test/a/0.png", GREY), ("val/a/0.png", GREY))
    with pytest.raises(UserError, match=r"has \['test', 'validation'\], but no folder train"):
        load_folder(tmp_path / "headless", None)
    folder_of(tmp_path / "extra", ("train/a/0.png", GREY), ("train/b/0.png", GREY), ("test/c/0.png", GREY))
    with pytest.raises(UserError, match="has the class 'c', which the training part lacks"):
        load_folder(tmp_path / "extra", None)
    folder_of(tmp_path / "flat", ("train/0.png", GREY), ("test/0.png", GREY))
    with pytest.raises(UserError, match="expected one subfolder a class, got none"):
        load_folder(tmp_path / "flat", None)


def test_arrays_of_other_layouts_and_sizes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (20, 8, 10, 3)).astype(np.uint8)
    labels = np.arange(20) % 2
    last = ArraySet(values, labels, ("a", "b"), "test")
    first = ArraySet(values.transpose(0, 3, 1, 2), labels, ("a", "b"), "test")
    assert torch.equal(last.images([3, 1]), first.images([3, 1]))
    assert ArraySet(values, labels, ("a", "b"), "test", size=4).images([3, 1]).shape == (2, 3, 4, 4)
    assert ArraySet(values.astype(np.float64).transpose(0, 3, 1, 2), labels, ("a", "b"), "test").floats
    np.save(tmp_path / "one.npy", values)
    with pytest.raises(UserError, match=r"expected a folder of \.npy files or an \.npz file, got the array"):
        load_data(DataConfig(path="one.npy"), search=[tmp_path])


class Kept:
    """A set that keeps labels beside its samples."""

    def __init__(self, targets: list[int], shift: int = 0) -> None:
        self.targets = targets
        self.shift = shift

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(1, 2, 2), (self.targets[position] + self.shift) % 3


@pytest.mark.parametrize("shift", [0, 1])
def test_kept_labels_count_only_where_the_samples_agree(shift: int) -> None:
    found = from_datasets({"train": Kept([0, 1, 2] * 30, shift)}, None, None, "")["train"]
    assert found.labels.tolist() == [(label + shift) % 3 for label in [0, 1, 2] * 30]


def test_torchvision_sets_are_read_by_name(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    fake = DataConfig(
        kind="torchvision", name="FakeData", arguments={"size": 30, "image_size": [3, 8, 8], "num_classes": 2}
    )
    splits = load_data(fake, search=[tmp_path])  # which has neither root nor parts
    assert splits.train.images([0]).shape == (1, 3, 8, 8)
    assert any("no test part" in note for note in splits.notes)
    wrong = DataConfig(kind="torchvision", name="FakeData", arguments={"sise": 30})
    with pytest.raises(UserError, match=r"data\.arguments: FakeData refuses them: .*sise"):
        load_data(wrong, search=[tmp_path])
    with pytest.raises(UserError, match=r"data\.name: torchvision has no data set 'CIFAR01'; did you mean"):
        load_data(DataConfig(kind="torchvision", name="CIFAR01"), search=[tmp_path])


class Pets:
    """A set that spells its parts as OxfordIIITPet does."""

    def __init__(self, root: str, split: str = "trainval") -> None:
        if split not in ("trainval", "test"):
            raise ValueError(f"Unknown value '{split}' for argument split.")
        self._labels = [0, 1] * (20 if split == "trainval" else 5)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: int) -> tuple[Image.Image, int]:
        return COLOUR, self._labels[position]


def test_torchvision_sets_that_spell_their_parts_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets, "OxfordIIITPet", Pets)
    config = DataConfig(kind="torchvision", name="OxfordIIITPet")
    splits = load_data(config, search=[tmp_path])
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [36, 4, 10]
    monkeypatch.setattr(datasets, "OxfordIIITPet", lambda root, split: Pets(root, split.upper()))
    with pytest.raises(UserError, match=r"data\.arguments: OxfordIIITPet refuses .*'TRAIN'"):
        load_data(config, search=[tmp_path])


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["folder", "parquet", "jsonl"])
def test_hugging_face_reads_files_paths_and_words(tmp_path: Path, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows = []
    for number in range(24):
        word = ("cat", "dog")[number % 2]
        (tmp_path / "files" / word).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(tmp_path / f"files/{word}/{number:02}.png")
        rows.append({"path": f"{word}/{number:02}.png", "class": word})
    path = "files"
    if form == "parquet":
        path = "files/latest.parquet"
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / path))
    if form == "jsonl":
        path = "files/rows.jsonl"
        (tmp_path / path).write_text("\n".join(json.dumps(row) for row in rows))
    config = DataConfig(kind="huggingface", path=path, validation=4)
    splits = load_data(config, search=[tmp_path])
    assert splits.train.class_names == ("cat", "dog")
    images, labels, _ = splits.train.__getitems__(range(16))
    assert images.shape == (16, 1, 4, 4)
    assert torch.equal(images[:, 0, 0, 0].long() % 2, labels)


def test_a_damaged_hugging_face_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"data\.path: cannot load the data set '.*bad\.parquet'"):
        load_data(DataConfig(kind="huggingface", path="bad.parquet"), search=[tmp_path])


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
        (DataLoader(TensorDataset(torch.zeros(2))), r"got a DataLoader; give its \.dataset"),
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


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cat.png", "sample 1: expected an image, got"),
        (np.zeros((4, 4), np.int64), r"sample 1: expected images .* of uint8 .* got \(4, 4\) int64"),
        (torch.zeros(3, 5, 5), r"mixed shapes .*; set data\.size to resize them"),
    ],
)
def test_a_sample_that_is_no_image_is_named(image: Any, message: str) -> None:
    found = from_datasets({"train": [(torch.zeros(3, 4, 4), 0), (image, 1)]}, None, None, "")
    with pytest.raises(UserError, match=message):
        found["train"].images([0, 1])


def test_a_broken_image_of_an_own_set_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    folder_of(tmp_path, *((f"{name}/{n:02}.png", COLOUR) for name in "ab" for n in range(40)))
    (tmp_path / "b" / "05.png").write_bytes(b"no image")
    given = {"train": datasets.ImageFolder(str(tmp_path))}
    with pytest.raises(UserError, match=r"cannot read the sample 45: .*05\.png"):
        from_datasets(given, None, None, "")["train"].images(range(80))


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
