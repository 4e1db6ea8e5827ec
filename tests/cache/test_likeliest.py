"""The likeliest words of a token against a slow oracle, its promises, and losses on what comes back."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from torch import Tensor

from potstill.cache.likeliest import FINEST, STEP, Likeliest
from potstill.cache.tokens import word_code_from
from potstill.losses.sequence import linear_divergence


def answers(tokens: int = 50, words: int = 1000, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(tokens, words, generator=torch.Generator().manual_seed(0))


def by_hand(row: list[float], count: int) -> tuple[list[int], list[float], float]:
    """Places, logarithms and tail of one row, one number after the other."""
    total = math.fsum(math.exp(each) for each in row)
    logs = [each - math.log(total) for each in row]
    places = sorted(range(len(row)), key=lambda place: -logs[place])[:count]
    found = [struct.unpack("<e", struct.pack("<e", logs[places[0]]))[0]]
    for place in places[1:]:
        level = round(math.log1p(max(0.0, found[-1] - logs[place]) / FINEST) / STEP)
        found.append(found[-1] - FINEST * math.expm1(STEP * min(255, level)))
    return places, found, math.fsum(math.exp(logs[each]) for each in range(len(row)) if each not in places)


def test_what_comes_back_is_what_a_loop_over_numbers_gives() -> None:
    code, rows = Likeliest(7), answers(5, 40)
    known = code.known(code.encode(rows), 40)
    for number, row in enumerate(rows.double().tolist()):
        places, logs, tail = by_hand(row, 7)
        assert known.ids[number].tolist() == places
        assert known.log_probabilities[number].tolist() == pytest.approx(logs, abs=1e-6)
        assert math.exp(known.log_tail[number]) == pytest.approx(tail, rel=1e-6)


def test_golden_bytes() -> None:
    # p = (1/2, 1/4, 1/4 in two others): log 1/2 = -0.6934 in float16 (0xB98C), then a gap of log 2 less its
    # rounding: ln(1 + 0.6929 / 0.01) / ln(3001) * 255 = 135.4
    row = torch.tensor([[1 / 8, 1 / 2, 1 / 8, 1 / 4]]).log()
    assert Likeliest(2).encode(row).tolist() == [[1, 3, *struct.pack("<f", math.log(1 / 4)), 0x8C, 0xB9, 135]]


def test_errors_do_not_add_up() -> None:
    code, rows = Likeliest(40), answers(200, 5000)
    known = code.known(code.encode(rows), 5000)
    exact = rows.double().log_softmax(-1).gather(-1, known.ids)
    off = (known.log_probabilities - exact).abs()
    gaps = -exact.diff(dim=-1)
    # half a step of the gap that was written; no more than before where that already lies too low
    step = torch.expm1(torch.tensor(STEP / 2)) * (FINEST + gaps + off[:, :-1]) + 1e-6
    assert bool((off[:, 1:] <= torch.maximum(step, off[:, :-1])).all())
    assert bool((off[:, 0] <= exact[:, 0].abs() * 2**-11 + 2**-24).all())
    assert float(off.mean()) < 0.003
    assert float(off[:, 20:].mean()) < float(off[:, :20].mean())


@pytest.mark.parametrize(("words", "count"), [(49_152, 41), (151_936, 30)])
def test_a_token_takes_at_most_128_bytes(words: int, count: int) -> None:
    code = Likeliest(count)
    rows = answers(2, words)
    assert code.encode(rows).shape == (2, code.width(words))
    assert code.width(words) <= 128


@pytest.mark.parametrize("name", ["likeliest41", "likeliest3 at 2.5"])
def test_a_header_names_it(name: str) -> None:
    found = word_code_from(name)
    assert found is not None
    assert found.name == name


def test_certain_words_and_all_words() -> None:
    rows = torch.tensor([[500.0, 0.0, -3.0, 1.0]])
    for count in (1, 2, 4):
        code = Likeliest(count)
        again = code.decode(code.encode(rows), 4)
        assert bool(again.isfinite().all())
        torch.testing.assert_close(again.softmax(-1), rows.softmax(-1))
        known = code.known(code.encode(rows), 4)
        hidden = torch.zeros(1, 3, requires_grad=True)
        loss = linear_divergence(hidden, torch.ones(4, 3), known).loss
        assert float(loss.detach()) == pytest.approx(math.log(4), rel=1e-5)


def test_a_loss_on_it_is_near_the_dense_one() -> None:
    logits, words = answers(60, 300), 300
    hidden = torch.randn(60, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    head = torch.randn(words, 8, generator=torch.Generator().manual_seed(2))
    found = {}
    for count in (20, 100, 290):
        code = Likeliest(count, 2.0)
        known = code.known(code.encode(logits), words)
        loss = linear_divergence(hidden, head, known, temperature=2.0).loss
        found[count] = torch.autograd.grad(loss, hidden)[0]
    exact = linear_divergence(hidden, head, logits, temperature=2.0).loss
    (gradient,) = torch.autograd.grad(exact, hidden)
    off = [float((found[count] - gradient).norm() / gradient.norm()) for count in found]
    assert off == sorted(off, reverse=True)
    assert off[-1] < 0.01
