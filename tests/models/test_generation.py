"""Writing: against a slow loop without cache or padding; draws that do not depend on the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from potstill.errors import UserError
from potstill.models.causal import narrow_vocabulary
from potstill.models.characters import tiny_llama
from potstill.models.generation import check_writes, write

PROMPTS = [[3, 4, 5, 6, 7], [8], [9, 10, 11]]


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    made = tiny_llama(24, layers=2, hidden=16, heads=2)
    for parameter in made.parameters():
        parameter.data *= 4  # far from even distributions
    return made.train()


@torch.no_grad()
def slowly(
    network: Any, prompt: list[int], seed: list[int], most: int, temperature: float, top_p: float, end: int
) -> tuple[list[int], float]:
    """One token after the other, each from the whole text so far."""
    numbers, ids, logs = np.random.default_rng(seed).random(most), list(prompt), []
    network.eval()
    for number in numbers:
        logits = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        shares = logits.softmax(0).tolist()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            warm = (logits / temperature).softmax(0).tolist()
            order = sorted(range(len(warm)), key=lambda place: -warm[place])
            kept, mass = [], 0.0
            for place in order:
                if mass >= top_p:
                    break
                kept.append(place)
                mass += warm[place]
            left = number * mass
            for token in kept:
                left -= warm[token]
                if left < 0:
                    break
        ids.append(token)
        logs.append(np.log(shares[token]))
        if token == end:
            break
    return ids[len(prompt) :], float(np.mean(logs))


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 1.0), (1.5, 0.6)])
def test_it_writes_what_a_slow_loop_writes(network: Any, temperature: float, top_p: float) -> None:
    end = 2
    seeds = [[5, place] for place in range(3)]
    found = write(network, PROMPTS, most=12, seeds=seeds, temperature=temperature, top_p=top_p, end=end)
    assert network.training
    for prompt, seed, each in zip(PROMPTS, seeds, found, strict=True):
        ids, likelihood = slowly(network, prompt, seed, 12, temperature, top_p, end)
        assert list(each.ids) == ids
        assert each.likelihood == pytest.approx(likelihood, abs=1e-4)
    network.train()


def test_draws_follow_the_distribution() -> None:
    torch.manual_seed(1)
    network = tiny_llama(6, layers=1, hidden=8, heads=2).eval()
    with torch.no_grad():
        shares = network(input_ids=torch.tensor([[3]])).logits[0, -1].softmax(0).numpy()
    found = write(network, [[3]] * 4000, most=1, seeds=[[place] for place in range(4000)], end=None)
    seen = np.bincount([each.ids[0] for each in found], minlength=6) / 4000
    assert np.abs(seen - shares).max() < 4 * 0.5 / 4000**0.5


def test_an_answer_ends_with_its_end_token(network: Any) -> None:
    found = write(network, [[3]] * 40, most=30, seeds=[[place] for place in range(40)], end=2)
    ended = [each for each in found if 2 in each.ids]
    assert ended
    assert all(each.ids.index(2) == len(each.ids) - 1 for each in ended)


def test_a_narrowed_vocabulary_is_kept_to() -> None:
    torch.manual_seed(0)
    network = tiny_llama(24, layers=1, hidden=8, heads=2)
    narrow_vocabulary(network, 10)
    found = write(network, [[3]] * 50, most=4, seeds=[[place] for place in range(50)], end=None)
    assert max(token for each in found for token in each.ids) < 10


def test_what_cannot_write_is_refused() -> None:
    with pytest.raises(UserError, match=r"student\.model: must write texts.*Linear"):
        check_writes(torch.nn.Linear(1, 1), "student.model")
