"""Words of next-token distributions as a cache holds them: drawn without bias, and as close as is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.cache.drawn import Drawn
from potstill.cache.layout import Layout
from potstill.cache.likeliest import Likeliest
from potstill.cache.tokens import TokenFidelity, Tokens, word_code, word_code_from
from potstill.errors import UserError
from potstill.losses.heads import Draws, Head, Projected
from potstill.losses.sequence import linear_divergence

WORDS, LENGTH = 300, 5


def answer(rows: int = 4) -> Projected:
    generator = torch.Generator().manual_seed(0)
    weight = 2 * torch.randn(WORDS, 8, generator=generator)
    return Projected(torch.randn(rows, LENGTH, 8, generator=generator), Head(weight))


def by_hand(logits: list[float], count: int, offset: float) -> list[int]:
    """Systematic draws, one after the other."""
    total = math.fsum(math.exp(each) for each in logits)
    found, upto, word = [], math.exp(logits[0]) / total, 0
    for place in range(count):
        while upto <= (place + offset) / count and word < len(logits) - 1:
            word += 1
            upto += math.exp(logits[word]) / total
        found.append(word)
    return found


def test_draws_against_a_loop() -> None:
    logits = 2 * torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    offsets = torch.rand(20, generator=torch.Generator().manual_seed(2))
    known = Drawn(9).known(Drawn(9).encode(logits, offsets), 50)
    for row, offset, ids, information in zip(
        logits.double(), offsets, known.ids, known.information, strict=True
    ):
        assert ids.tolist() == by_hand(row.tolist(), 9, float(offset))
        logs = row.log_softmax(0)
        assert float(information) == pytest.approx(float((logs.exp() * logs).sum()), rel=1e-3)


def test_the_mean_over_offsets_is_the_distribution() -> None:
    logits, many = torch.tensor([[3.0, 1.0, 0.0, -1.0, -4.0]]), 4000
    offsets = (torch.arange(many) + 0.5) / many
    ids = Drawn(3).known(Drawn(3).encode(logits.expand(many, -1), offsets), 5).ids
    shares = torch.bincount(ids.flatten(), minlength=5) / ids.numel()
    torch.testing.assert_close(shares, logits.softmax(-1)[0], rtol=0, atol=1e-3)


def test_value_and_gradient_are_right_in_the_mean_over_draws() -> None:
    hidden = torch.randn(
        1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    ).requires_grad_()
    head = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    logits, many = torch.randn(1, 7, generator=torch.Generator().manual_seed(5)), 3000
    code = Drawn(4, temperature=2.0)
    known = code.known(code.encode(logits.expand(many, -1), (torch.arange(many) + 0.5) / many), 7)
    options = {"temperature": 2.0}
    found = linear_divergence(hidden.expand(many, -1), head, known, **options)
    exact = linear_divergence(hidden, head, logits, **options)
    assert float(found.loss.detach()) / many == pytest.approx(float(exact.loss.detach()), abs=2e-3)
    ours = torch.autograd.grad(found.loss / many, [hidden, head])
    for mine, its in zip(ours, torch.autograd.grad(exact.loss, [hidden, head]), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=5e-3)
    with pytest.raises(ValueError, match="expected kl for words that were drawn, got reverse_kl"):
        linear_divergence(hidden.expand(many, -1), head, known, divergence="reverse_kl")


def test_drawn_words_have_the_derivative_that_differences_give() -> None:
    head = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    hidden = torch.randn(
        2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    ).requires_grad_()
    known = Draws(torch.tensor([[0, 0, 3], [6, 1, 6]]), torch.tensor([-1.0, -0.5]))

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        target = torch.tensor([2, 0])
        return linear_divergence(hidden, head, known, temperature=1.5, target=target, weight=0.7).loss

    assert torch.autograd.gradcheck(loss, (hidden, head))


@pytest.mark.parametrize("code", [Likeliest(20), Drawn(31, 2.0)])
def test_rows_come_back_whatever_batch_they_were_in(code: Likeliest | Drawn) -> None:
    given = answer()
    layout = Layout([Tokens(LENGTH, WORDS, code)])
    assert layout.tokens == Layout.from_plain(layout.plain()).tokens
    whole = layout.encode({"": given}, np.arange(4))
    apart = [
        layout.encode({"": Projected(given.hidden[[row]], given.head)}, np.array([row])) for row in range(4)
    ]
    assert torch.equal(whole, torch.cat(apart))
    known = layout.decode(whole)[""]
    assert known.ids.shape == (4, LENGTH, code.count)
    assert known[-1].shape == (4, LENGTH)


def test_what_is_told_of_the_likeliest_words_is_what_a_loop_finds() -> None:
    given, field = answer(), Tokens(LENGTH, WORDS, Likeliest(20))
    records = field.encode(given, np.arange(4))
    fidelity = TokenFidelity(field)
    fidelity.add(given, records)
    told, known = fidelity.figures(), field.decode(records)
    off, kl, wrong, pull = [], 0.0, 0.0, 0.0
    for row in range(4):
        for place in range(LENGTH):
            exact = (given.hidden[row, place].double() @ given.head.weight.double().t()).log_softmax(0)
            stored = torch.full((WORDS,), float(known.log_tail[row, place]) - math.log(WORDS - 20)).double()
            stored[known.ids[row, place]] = known.log_probabilities[row, place].double()
            off += (stored - exact)[known.ids[row, place]].abs().tolist()
            kl += float((exact.exp() * (exact - stored)).sum())
            wrong += float((exact.exp() - stored.exp()).square().sum())
            pull += float((exact.exp() - 1 / WORDS).square().sum())
    assert told["log_p"] == pytest.approx(np.mean(off), rel=1e-3)
    assert told["log_p_most"] == pytest.approx(max(off), rel=1e-3)
    assert told["kl"] == pytest.approx(kl / 20, rel=1e-3)
    assert told["gradient"] == pytest.approx(math.sqrt(wrong / pull), rel=1e-3)
    assert (told["measured"], told["unbiased"]) == (20, False)


def test_codes_by_room_and_name() -> None:
    for words in ("drawn", "likeliest"):
        for size in (200, 49152, 151936):
            code = word_code(words, 128, size, 1.0)
            assert code.width(size) <= 128 < type(code)(code.count + 1).width(size)
            assert word_code_from(code.name) == code
    assert word_code("likeliest", 128, 10, 1.0).count == 10
    with pytest.raises(UserError, match=r"teacher\.cache\.bytes"):
        word_code("likeliest", 8, 70000, 1.0)


def test_what_is_not_finite_is_refused() -> None:
    given = answer()
    given.hidden[0, 0, 0] = math.nan
    with pytest.raises(UserError, match="NaN"):
        Tokens(LENGTH, WORDS, Likeliest(3)).encode(given, np.arange(4))
