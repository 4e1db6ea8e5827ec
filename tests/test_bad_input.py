"""Every mistake of a user gives one clear message, and leaves no half-made run behind."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from potstill.errors import UserError
from potstill.run import run


def save_labels(tiny: Any, change: Callable[[np.ndarray], np.ndarray], part: str = "train") -> None:
    path = tiny.data / f"{part}_labels.npy"
    np.save(path, change(np.load(path)))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_weights(tiny: Any) -> None:
    state = load_file(tiny.teacher)
    state["head.weight"] = torch.zeros(5, 8 * 36)
    state["surplus"] = torch.zeros(1)
    del state["conv.bias"]
    save_file(state, tiny.teacher)


def code_in_checkpoint(tiny: Any) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tiny.root / "boom"), "w"))

    torch.save({"state_dict": Bomb()}, tiny.root / "teacher.pt")


def swap_classes(tiny: Any) -> None:
    save_labels(tiny, lambda labels: (labels + 1) % 3)


def folder_of_images(tiny: Any, *, sizes: tuple[int, ...] = (6,), corrupt: bool = False) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("left", "middle")):
            folder = tiny.root / "pictures" / part / name
            folder.mkdir(parents=True)
            for index in range(12):
                side = sizes[index % len(sizes)]
                Image.fromarray(np.full((side, side), 40 * number, np.uint8)).save(folder / f"{index}.png")
    if corrupt:
        (tiny.root / "pictures" / "train" / "left" / "3.png").write_bytes(b"no image")


PICTURES = ("data.kind=folder", "data.path=pictures")

# what is wrong, how it came about, the overrides, and what the message must hold
CASES: dict[str, tuple[Callable[[Any], object], tuple[str, ...], tuple[str, ...]]] = {
    "unknown key": (lambda tiny: None, ("trian.epochs=1",), ("trian: unknown key", "did you mean 'train'")),
    "wrong type": (
        lambda tiny: None,
        ("train.epochs=many",),
        ("train.epochs: expected a number, got 'many'",),
    ),
    "out of range": (lambda tiny: None, ("augment.flip=2",), ("augment.flip: must be <= 1, got 2",)),
    "unknown loss": (lambda tiny: None, ("distill.kll={}",), ("distill.kll: unknown loss", "'kl'")),
    "unknown layer": (
        lambda tiny: None,
        ("distill.hint.layers=[cnov]",),
        ("distill.hint.layers", "no layer 'cnov'", "did you mean 'conv'"),
    ),
    "missing weights": (
        lambda tiny: None,
        ("teacher.weights=techer.safetensors",),
        ("teacher.weights: 'techer.safetensors' not found", "did you mean 'teacher.safetensors'"),
    ),
    "no weights": (lambda tiny: None, ("teacher.weights=null",), ("teacher.weights: missing", "random")),
    "missing data": (lambda tiny: None, ("data.path=bolbs",), ("data.path: 'bolbs' not found", "'blobs'")),
    "folder for weights": (
        lambda tiny: None,
        ("teacher.weights=blobs",),
        ("expected a weight file, got the folder",),
    ),
    "file for folder": (
        lambda tiny: None,
        ("data.kind=folder", "data.path=nets.py"),
        ("data.path: expected a folder with one subfolder a class, got the file",),
    ),
    "empty weights": (
        lambda tiny: tiny.teacher.write_bytes(b""),
        (),
        ("teacher.weights: expected weights, got the empty file",),
    ),
    "truncated weights": (lambda tiny: truncate(tiny.teacher), (), ("teacher.weights:", "damaged")),
    "pickle with code": (
        code_in_checkpoint,
        ("teacher.weights=teacher.pt",),
        ("teacher.weights:", "would run code, which Potstill never does"),
    ),
    "other weights": (
        other_weights,
        (),
        (
            "missing: conv.bias",
            "unexpected: surplus",
            "head.weight expected (3, 288), got (5, 288)",
        ),
    ),
    "other class count": (
        lambda tiny: None,
        ("student.model='nets.py:stubborn'",),
        ("student.model: expected logits (2, 3) for the data's 3 classes, got (2, 7)",),
    ),
    "labels out of range": (
        lambda tiny: save_labels(tiny, lambda labels: labels * 5),
        (),
        ("expected labels 0 to 2, got 0 to 10",),
    ),
    "labels of another length": (
        lambda tiny: save_labels(tiny, lambda labels: labels[:-1]),
        (),
        ("expected a label for every image, got 120 and 119",),
    ),
    "empty data": (
        lambda tiny: (
            np.save(tiny.data / "train_images.npy", np.zeros((0, 6, 6), np.uint8)),
            np.save(tiny.data / "train_labels.npy", np.zeros(0, np.int64)),
        ),
        (),
        ("expected samples, got an empty data set",),
    ),
    "one class": (
        lambda tiny: save_labels(tiny, lambda labels: labels * 0),
        (),
        ("expected at least two classes, got only class 0 (left)",),
    ),
    "truncated array": (
        lambda tiny: truncate(tiny.data / "train_images.npy"),
        (),
        ("train_images.npy: expected a whole .npy array",),
    ),
    "mixed sizes": (
        lambda tiny: folder_of_images(tiny, sizes=(6, 8)),
        PICTURES,
        ("images of mixed sizes", "set data.size to resize them"),
    ),
    "corrupt image": (
        lambda tiny: folder_of_images(tiny, corrupt=True),
        PICTURES,
        ("cannot decode the image", "3.png"),
    ),
    "batch bigger than the data": (
        lambda tiny: None,
        ("train.batch_size=1000",),
        ("train.batch_size: must be at most the 108 training samples, got 1000",),
    ),
    "crop bigger than the image": (
        lambda tiny: None,
        ("augment.crop=6",),
        ("augment.crop: must be smaller than the image (6x6), got 6",),
    ),
    "no such module": (
        lambda tiny: None,
        ("student.model='nest.py:small'",),
        ("student.model: 'nest.py' not found", "did you mean 'nets.py'"),
    ),
    "no such attribute": (
        lambda tiny: None,
        ("student.model='nets.py:smal'",),
        ("student.model:", "no attribute 'smal'", "did you mean 'small'"),
    ),
    "no network": (
        lambda tiny: None,
        ("student.model='nets.py:no_module'",),
        ("student.model: expected a torch.nn.Module", "got str"),
    ),
    "wrong arguments": (
        lambda tiny: None,
        ("student.arguments={widht: 3}",),
        ("student.arguments:", "widht"),
    ),
    "wrong channels": (
        lambda tiny: None,
        ("teacher.mean=[0.5, 0.5, 0.5]", "teacher.std=[0.5, 0.5, 0.5]"),
        ("teacher.mean: expected 1 values", "got 3"),
    ),
    "teacher worse than chance": (
        lambda tiny: save_file(
            {name: tensor * 0 for name, tensor in load_file(tiny.teacher).items()}, tiny.teacher
        ),
        (),
        ("teacher: expected better than chance (33.3%)",),
    ),
    "class order": (swap_classes, (), ("teacher: its class order contradicts the data", "'left'")),
    "teacher with NaN": (
        lambda tiny: save_file(
            {name: tensor * torch.nan for name, tensor in load_file(tiny.teacher).items()}, tiny.teacher
        ),
        (),
        ("teacher: expected finite logits, got NaN",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_gives_one_clear_message_and_no_run(tiny: Any, tmp_path: Path, name: str) -> None:
    break_it, overrides, expected = CASES[name]
    break_it(tiny)
    out = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        run(tiny.recipe, data=tiny.root, out=out, overrides=overrides, echo=lambda line: None)
    message = str(caught.value)
    for part in expected:
        assert part in message
    assert "\n" not in message
    assert not out.exists()
    assert not (tiny.root / "boom").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Any, tmp_path: Path) -> None:
    overrides = ("train.learning_rate=1e30", "train.checkpoint_every=1", "train.epochs=4")
    with pytest.raises(UserError) as caught:
        run(tiny.recipe, data=tiny.root, out=tmp_path / "run", overrides=overrides, echo=lambda line: None)
    message = str(caught.value)
    assert "not finite" in message
    assert "step" in message
    assert "checkpoint" in message


def test_a_full_disk_is_named(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="the disk is full"):
        run(tiny.recipe, data=tiny.root, out=tmp_path / "run", echo=lambda line: None)


def test_no_permission_is_named(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"run.*: cannot make the run folder: Permission denied"):
        run(tiny.recipe, data=tiny.root, out=tmp_path / "run", echo=lambda line: None)


def test_a_dead_worker_is_named(tiny: Any, tmp_path: Path) -> None:
    (tiny.root / "deadly.py").write_text(
        "import os\n"
        "import torch\n"
        "from torch.utils.data import Dataset\n\n\n"
        "class Deadly(Dataset):\n"
        "    targets = [number % 3 for number in range(60)]\n\n"
        "    def __len__(self):\n"
        "        return 60\n\n"
        "    def __getitem__(self, position):\n"
        "        if torch.utils.data.get_worker_info() is not None:\n"
        "            os._exit(9)\n"
        "        image = torch.zeros(1, 6, 6, dtype=torch.uint8)\n"
        "        third = self.targets[position]\n"
        "        image[:, :, 2 * third : 2 * third + 2] = 200\n"
        "        return image, third\n"
    )
    overrides = ("data.kind=own", "data.path='deadly.py:Deadly'", "data.workers=1", "train.epochs=1")
    with pytest.raises(UserError, match=r"data.workers: a process that decodes images died"):
        run(tiny.recipe, data=tiny.root, out=tmp_path / "run", overrides=overrides, echo=lambda line: None)


def test_a_missing_library_says_what_to_install(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    overrides = ("student.model='timm:resnet18'",)
    with pytest.raises(UserError, match=r"pip install 'potstill\[vision\]'"):
        run(tiny.recipe, data=tiny.root, out=tmp_path / "run", overrides=overrides, echo=lambda line: None)
