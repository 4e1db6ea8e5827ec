"""Data sets that other libraries name: torchvision's and those of the Hugging Face ``datasets`` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.data.dataset import ImageSet
from potstill.data.own import from_datasets
from potstill.errors import UserError, nearest

__all__ = ["load_huggingface", "load_torchvision"]


def load_torchvision(
    name: str, root: Path, arguments: Mapping[str, Any], size: int | None
) -> dict[str, ImageSet]:
    """A torchvision data set by class name (``CIFAR10``), read from ``root``, downloaded if missing.

    Raises:
        UserError: If torchvision is not installed, has no such set, or the files can be neither found nor
            downloaded.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UserError(
            "data.kind", "torchvision is not installed: pip install 'potstill[vision]'"
        ) from error
    if name not in datasets.__all__:
        raise UserError("data.name", f"torchvision has no data set {name!r}{nearest(name, datasets.__all__)}")
    cls = getattr(datasets, name)
    options: dict[str, Any] = {"root": str(root), **arguments}
    parts = {}
    for part, by_flag in (("train", {"train": True}), ("test", {"train": False})):
        parts[part] = _made(cls, name, options, by_flag, {"split": part})
    return from_datasets(parts, None, size, "data.name: ")


def _made(
    cls: Any, name: str, options: Mapping[str, Any], by_flag: Mapping[str, Any], by_split: Mapping[str, Any]
) -> Any:
    """One part of a torchvision set, whichever way its constructor names parts and downloads."""
    import inspect

    accepted = inspect.signature(cls).parameters
    chosen = by_flag if "train" in accepted else by_split
    try:
        return cls(**options, **chosen)
    except (RuntimeError, OSError) as missing:
        if "download" not in accepted:
            raise UserError("data.name", f"{name} is not in {options['root']}: {missing}") from missing
        try:
            return cls(**options, **chosen, download=True)
        except (RuntimeError, OSError) as error:
            raise UserError(
                "data.name", f"{name} is not in {options['root']} and cannot be downloaded: {error}"
            ) from error
    except (TypeError, ValueError) as error:
        raise UserError("data.arguments", f"{name} refuses them: {error}") from error


def load_huggingface(
    source: str, columns: tuple[str | None, str | None], arguments: Mapping[str, Any], size: int | None
) -> dict[str, ImageSet]:
    """A Hugging Face image data set, by hub name or local path.

    Args:
        source: A folder of ``save_to_disk``, a folder or file of parquet, or a name on the hub.
        columns: Image and label column; ``None`` finds them by type and usual name.
        arguments: Passed on to ``load_dataset``.
        size: Side to resize to.

    Raises:
        UserError: If the library is not installed, or the set or its columns cannot be found.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.kind", "datasets is not installed: pip install 'potstill[data]'") from error
    loaded = _loaded(datasets, source, arguments)
    splits = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    if "train" not in splits:
        raise UserError("data.path", f"{source}: expected a split 'train', got {sorted(splits)}")
    image = _column(
        datasets, splits["train"], columns[0], ("image", "img", "pixel_values"), "data.image_column"
    )
    label = _column(
        datasets, splits["train"], columns[1], ("label", "labels", "fine_label"), "data.label_column"
    )
    names = getattr(splits["train"].features[label], "names", None)
    spelled = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
    parts = {
        spelled.get(name, name): _Columns(split, image, label)
        for name, split in splits.items()
        if name in (*spelled, "test")
    }
    return from_datasets(parts, names, size, "data.path: ")


def _loaded(datasets: Any, source: str, arguments: Mapping[str, Any]) -> Any:
    path = Path(source)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return datasets.load_from_disk(source)
        if path.is_dir() and list(path.rglob("*.parquet")):
            files = {
                part: [str(file) for file in sorted(path.rglob("*.parquet")) if part in file.name]
                for part in ("train", "validation", "test")
            }
            named = {part: found for part, found in files.items() if found}
            everything = {"train": [str(file) for file in sorted(path.rglob("*.parquet"))]}
            return datasets.load_dataset("parquet", data_files=named or everything, **arguments)
        return datasets.load_dataset(source, **arguments)
    except (OSError, ValueError, RuntimeError, ConnectionError) as error:
        raise UserError("data.path", f"cannot load the data set {source!r}: {error}") from error


def _column(datasets: Any, split: Any, wanted: str | None, usual: Sequence[str], where: str) -> str:
    names = list(split.features)
    if wanted is not None:
        if wanted not in names:
            raise UserError(where, f"no column {wanted!r}{nearest(wanted, names)}")
        return wanted
    kind = datasets.Image if where.endswith("image_column") else datasets.ClassLabel
    typed = [name for name in names if isinstance(split.features[name], kind)]
    found: str | None = next((name for name in (*typed, *usual) if name in names), None)
    if found is None:
        raise UserError(where, f"cannot tell the column; the data set has {', '.join(names)}")
    return found


class _Columns:
    """A Hugging Face split as ``(image, label)``, its labels readable without decoding the images."""

    def __init__(self, split: Any, image: str, label: str) -> None:
        self.split = split
        self.image = image
        self.label = label
        self.targets = list(split[label])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        return self.split[position][self.image], self.targets[position]
