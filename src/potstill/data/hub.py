"""Data sets of the Hugging Face ``datasets`` library, by hub name or local path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.data.dataset import ImageSet
from potstill.data.own import from_datasets
from potstill.errors import UserError, nearest

__all__ = ["SPELLED", "load_huggingface", "load_splits"]

SPELLED = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
IMAGE_COLUMNS = ("image", "img", "pixel_values", "file_name", "path")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")


def load_huggingface(
    source: str, columns: tuple[str | None, str | None], arguments: Mapping[str, Any], size: int | None
) -> dict[str, ImageSet]:
    """A Hugging Face image data set, by hub name or local path.

    Args:
        source: A folder of ``save_to_disk``, a folder of anything that ``load_dataset`` reads (parquet, csv,
            json lines, an image folder), one such file, or a name on the hub. Images may be paths, relative
            to that folder; labels may be words.
        columns: Image and label column; ``None`` finds them by type and usual name.
        arguments: Passed on to ``load_dataset``.
        size: Side to resize to.

    Raises:
        UserError: If the library is not installed, or the set or its columns cannot be found.
    """
    splits = load_splits(source, arguments)
    import datasets

    train = splits["train"]
    image = _column(train, columns[0], datasets.Image, IMAGE_COLUMNS, "data.image_column")
    label = _column(train, columns[1], datasets.ClassLabel, LABEL_COLUMNS, "data.label_column")
    names = getattr(train.features[label], "names", None)
    if names is None and len(train) and isinstance(train[0][label], str):
        names = sorted(set(train[label]))
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    parts = {
        SPELLED[name]: _Columns(split.select_columns([image, label]), image, label, names, folder)
        for name, split in splits.items()
        if name in SPELLED
    }
    return from_datasets(parts, names, size, "data.path: ")


def load_splits(source: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The splits of a data set by the library's names, ``train`` among them.

    Raises:
        UserError: If the library is not installed, or there is no such set.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.kind", "datasets is not installed: pip install 'potstill[data]'") from error
    loaded = _loaded(datasets, source, arguments)
    splits = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    if "train" not in splits:
        raise UserError("data.path", f"{source}: expected a split 'train', got {sorted(splits)}")
    return splits


def _loaded(datasets: Any, source: str, arguments: Mapping[str, Any]) -> Any:
    path = Path(source)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return datasets.load_from_disk(source)
        if path.is_file() and path.suffix in BUILDERS:
            return datasets.load_dataset(BUILDERS[path.suffix], data_files=source, **arguments)
        return datasets.load_dataset(source, **arguments)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError("data.path", f"cannot load the data set {source!r}: {error}") from error


def _column(split: Any, wanted: str | None, kind: type, usual: Sequence[str], where: str) -> str:
    """The column that the recipe names, that has the right type, or that has a usual name."""
    names = list(split.features)
    if wanted is not None:
        if wanted not in names:
            raise UserError(where, f"no column {wanted!r}{nearest(wanted, names)}")
        return wanted
    typed = [name for name in names if isinstance(split.features[name], kind)]
    found: str | None = next((name for name in (*typed, *usual) if name in names), None)
    if found is None:
        raise UserError(where, f"cannot tell the column; the data set has {', '.join(names)}")
    return found


class _Columns:
    """A split as ``(image, label)``, its labels readable without decoding the images."""

    def __init__(self, split: Any, image: str, label: str, names: Sequence[str] | None, folder: Path) -> None:
        self.split = split
        self.image = image
        self.folder = folder
        self.targets = list(split[label])
        if self.targets and isinstance(self.targets[0], str):
            numbers = {name: number for number, name in enumerate(names or ())}
            unknown = sorted(set(self.targets) - set(numbers))
            if unknown:
                raise UserError("data.label_column", f"the class {unknown[0]!r} is not in the training part")
            self.targets = [numbers[name] for name in self.targets]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        image = self.split[position][self.image]
        if isinstance(image, str):
            from PIL import Image

            image = Image.open(self.folder / image)
            image.load()  # closes the file
        return image, self.targets[position]
