"""What causal language models write: many prompts at once, with draws that do not depend on the batch.

Each answer has random numbers of its own, so what is written after a prompt is the same in any batch, up to
the rounding of sums over padded rows, and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.batch import Batch
from potstill.errors import UserError
from potstill.models.causal import need_transformers

__all__ = ["Written", "check_writes", "own_batch", "prompt_sizes", "write"]


@dataclass(frozen=True)
class Written:
    """An answer.

    Attributes:
        ids: Its tokens, the end token included where it came.
        likelihood: Mean log-probability of its tokens, at temperature 1 and without cuts, in nats.
    """

    ids: tuple[int, ...]
    likelihood: float


def check_writes(network: nn.Module, where: str) -> None:
    """Refuse a network that cannot write.

    Raises:
        UserError: At ``where``.
    """
    if not hasattr(network, "generate"):
        raise UserError(
            where, f"must write texts: a causal language model of transformers, got {type(network).__name__}"
        )


class _Draws:
    """Chooses each next token by random numbers that are given, and counts how likely it was.

    Args:
        uniforms: Numbers in [0, 1), ``(N, most)``.
        temperature: Of the sampling; 0 for the likeliest token.
        top_p: Share of the probability that may be drawn from.
    """

    def __init__(self, uniforms: Tensor, temperature: float, top_p: float) -> None:
        self.uniforms, self.temperature, self.top_p = uniforms, temperature, top_p
        self.logs: list[Tensor] = []

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(N, V)`` that leave one token, ``(N, V)``."""
        logs = scores.float().log_softmax(dim=-1)
        if self.temperature == 0:
            chosen = logs.argmax(dim=-1, keepdim=True)
        else:
            chosen = self._drawn((scores.float() / self.temperature).softmax(dim=-1))
        self.logs.append(logs.gather(1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    def _drawn(self, shares: Tensor) -> Tensor:
        """One token of each distribution ``(N, V)``, ``(N, 1)``: the likeliest lie first on the line."""
        ordered, tokens = shares.sort(dim=-1, descending=True, stable=True)
        ends = ordered.double().cumsum(dim=-1)
        kept = (ends - ordered < self.top_p).sum(dim=-1, keepdim=True)  # the likeliest always is
        whole = ends.gather(1, kept - 1)
        at = self.uniforms[:, len(self.logs), None] * whole
        place = torch.searchsorted(ends, at, right=True)
        return tokens.gather(1, torch.minimum(place, kept - 1))


@torch.no_grad()
def write(
    network: Any,
    prompts: Sequence[Sequence[int]],
    *,
    most: int,
    seeds: Sequence[Sequence[int]],
    temperature: float = 1.0,
    top_p: float = 1.0,
    end: int | None,
) -> list[Written]:
    """Continue prompts, in eval mode and with a cache of keys and values.

    Args:
        network: A causal language model of transformers; its mode is as before afterwards.
        prompts: Token ids, at least one each.
        most: Tokens to write at most, at least 1.
        seeds: For each prompt, numbers >= 0 that decide its draws.
        temperature: Of the sampling, >= 0; 0 takes the likeliest token.
        top_p: Draw from the likeliest tokens that have this share of the probability, in (0, 1].
        end: The token that ends an answer, if there is one.

    Returns:
        An answer for each prompt.

    Example:
        >>> from potstill.models.characters import tiny_llama
        >>> network = tiny_llama(20, layers=1, hidden=8, heads=2)
        >>> some = write(network, [[3, 4], [5]], most=4, seeds=[[0], [1]], end=None)
        >>> alone = write(network, [[5]], most=4, seeds=[[1]], end=None)
        >>> [len(each.ids) for each in some], some[1].ids == alone[0].ids
        ([4, 4], True)
    """
    transformers = need_transformers()
    device = next(network.parameters()).device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), end or 0, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    numbers = np.stack([np.random.default_rng(list(seed)).random(most) for seed in seeds])
    draws = _Draws(torch.from_numpy(numbers).to(device), temperature, top_p)
    training = network.training
    network.eval()
    try:
        made: Tensor = network.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=most, do_sample=False, use_cache=True, eos_token_id=end, pad_token_id=end or 0
            ),
            logits_processor=transformers.LogitsProcessorList([draws]),
        )
    finally:
        network.train(training)
    logs = torch.stack(draws.logs, dim=1).cpu()
    return [_cut(row, each, end) for row, each in zip(made[:, width:].tolist(), logs, strict=True)]


def _cut(ids: Sequence[int], logs: Tensor, end: int | None) -> Written:
    """An answer up to its end token."""
    length = ids.index(end) + 1 if end in ids else len(ids)
    return Written(tuple(ids[:length]), float(logs[:length].mean()))


def own_batch(
    network: nn.Module,
    batch: Batch,
    seed: Sequence[int],
    *,
    most: int,
    prompt_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Batch:
    """What a network writes after the prompts in a batch, as a batch without labels.

    A prompt is what stands in a row before the first token that is learnt; of a text, which is learnt from
    its beginning, the first tokens.

    Args:
        network: A causal language model of transformers.
        batch: Rows ``input_ids`` and ``position_ids`` ``(N, L)``, and ``where`` predictions
            count, ``(N, L)``.
        seed: Numbers that decide the draws, with the row's.
        most: Tokens to write at most; a row stays within ``L``.
        prompt_tokens: Length of the prompt that is cut from a text.
        temperature: Of the sampling.
        top_p: Draw from the likeliest tokens that have this share of the probability.

    Returns:
        Rows of prompt and answer ``(N, longest)``; the predictions of the answer's tokens count.
    """
    inputs = batch.input("student")
    assert not isinstance(inputs, Tensor), "a language model reads tokens and their positions"
    assert batch.where is not None, "and some predictions count"
    ids, length = inputs["input_ids"].cpu(), inputs["input_ids"].shape[1]
    sizes = prompt_sizes(batch, prompt_tokens)
    config: Any = network.generation_config
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    prompts = [row[:size].tolist() for row, size in zip(ids, sizes, strict=True)]
    room = getattr(network.config, "max_position_embeddings", None) or max(sizes) + most
    written = write(
        network,
        prompts,
        most=min(most, length - min(sizes), room - max(sizes)),
        seeds=[[*seed, row] for row in range(len(prompts))],
        temperature=temperature,
        top_p=top_p,
        end=end,
    )
    rows = [[*prompt, *each.ids][:length] for prompt, each in zip(prompts, written, strict=True)]
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[end or 0] * (longest - len(row))] for row in rows])
    places = torch.arange(longest).expand(len(rows), longest)
    first, last = torch.tensor(sizes)[:, None] - 1, torch.tensor([len(row) for row in rows])[:, None] - 1
    device = inputs["input_ids"].device
    made = {"input_ids": tokens.to(device), "position_ids": places.to(device)}
    where = ((places >= first) & (places < last)).to(device)
    return Batch({"student": made}, None, where, batch.index, batch.view)


def prompt_sizes(batch: Batch, tokens: int) -> list[int]:
    """Length of the prompt of each row, as :func:`own_batch` takes it.

    Args:
        batch: Rows ``input_ids`` and ``position_ids`` ``(N, L)``, and ``where`` predictions count.
        tokens: Length of the prompt that is cut from a text.
    """
    inputs = batch.input("student")
    assert not isinstance(inputs, Tensor), "a language model reads tokens and their positions"
    assert batch.where is not None, "and some predictions count"
    both = zip(batch.where.cpu(), inputs["position_ids"].cpu(), strict=True)
    return [_prompt_size(where, places, tokens) for where, places in both]


def _prompt_size(where: Tensor, places: Tensor, tokens: int) -> int:
    """Length of a row's first prompt: at least one token, and one is left to write."""
    first = int(where.nonzero()[0, 0]) if bool(where.any()) else 0
    if first:
        return first + 1
    ends = (places != torch.arange(len(places))).nonzero()  # where another document begins
    piece = int(ends[0, 0]) if len(ends) else len(places)
    return max(1, min(tokens, piece - 1))
