"""Codes against slow oracles that take one number at a time, and what they promise of their error."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from torch import Tensor

from potstill.cache.codes import Affine, Code, Float, Top, code_from
from potstill.cache.fidelity import Fidelity, candidates, choose, divergence

CODES: list[Code] = [Float(16), Float(32), Affine(), Top(3), Top(3, 4.0)]
HARD = {
    "usual": torch.randn(7, 11, generator=torch.Generator().manual_seed(0)) * 5,
    "constant": torch.full((2, 11), 3.7),
    "zeros": torch.zeros(2, 11),
    "huge": torch.tensor([[7e4, -8e4, *range(9)], [6e4, 5e4, *range(9)]]),
    "tiny": torch.arange(11.0)[None] * 1e-7,
    "far from zero": 1000 + torch.arange(11.0)[None] * 0.01,
    "sure": torch.tensor([[200.0, -200.0, 199.5, *range(8)]]),
}


def half(number: float) -> float:
    return float(struct.unpack("<e", struct.pack("<e", number))[0])


def affine_by_hand(row: list[float]) -> list[float]:
    """Offset at most the least, steps of at least a 255th of the rest, one number after the other."""
    row = [max(-65504.0, min(65504.0, number)) for number in row]
    offset = half(max(-65504.0, min(row) - abs(min(row)) * 2**-10 - 2**-24))
    step = half((max(row) - offset) / 255 * (1 + 2**-10) + 2**-24)
    return [offset + step * max(0, min(255, round((number - offset) / step))) for number in row]


def top_by_hand(row: list[float], count: int, temperature: float) -> list[float]:
    """Probabilities: the largest as they are, the rest shared evenly."""
    whole = max(row)
    weights = [math.exp((number - whole) / temperature) for number in row]
    shares = [weight / sum(weights) for weight in weights]
    kept = sorted(range(len(row)), key=lambda place: -row[place])[:count]
    rest = sum(share for place, share in enumerate(shares) if place not in kept)
    return [share if place in kept else rest / (len(row) - count) for place, share in enumerate(shares)]


def there_and_back(code: Code, rows: Tensor) -> Tensor:
    return code.decode(code.encode(rows), rows.shape[-1])


@pytest.mark.parametrize("rows", HARD.values(), ids=HARD)
def test_eight_bits_are_what_a_loop_over_numbers_gives(rows: Tensor) -> None:
    found = there_and_back(Affine(), rows)
    expected = torch.tensor([affine_by_hand(row) for row in rows.tolist()])
    step = (expected.amax() - expected.amin()) / 255
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=float(step) * 1e-3 + 1e-9)


@pytest.mark.parametrize("rows", HARD.values(), ids=HARD)
def test_eight_bits_are_off_by_half_a_step(rows: Tensor) -> None:
    found, clamped = there_and_back(Affine(), rows), rows.clamp(-65504, 65504)
    low = clamped.amin(dim=-1, keepdim=True)
    span = clamped.amax(dim=-1, keepdim=True) - low + low.abs() * 2**-9 + 2**-23
    bound = span / 510 * (1 + 2**-9) + 2**-24
    edge = (clamped.abs() > 65440).any(dim=-1, keepdim=True) * 64.0  # where float16 itself ends
    assert bool(((found - clamped).abs() <= bound + edge + clamped.abs() * 1e-6).all())


def test_golden_bytes() -> None:
    row = torch.tensor([[-1.0, 0.0, 4.0]])
    assert Float(16).encode(row).tolist() == [[0x00, 0xBC, 0x00, 0x00, 0x00, 0x44]]
    assert Affine().encode(row).tolist() == [[0x01, 0xBC, 0x07, 0x25, 0, 51, 255]]
    assert Top(2).encode(row).tolist() == [[2, 1, 0x06, 0xC5, 0x07, 0xC4, 0x06, 0x24, 255, 0]]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_largest_keep_their_probability_and_the_rest_its_sum(temperature: float) -> None:
    rows = HARD["usual"]
    found = (there_and_back(Top(4, temperature), rows) / temperature).softmax(dim=-1)
    expected = torch.tensor([top_by_hand(row, 4, temperature) for row in rows.double().tolist()])
    torch.testing.assert_close(found, expected, rtol=0.06, atol=2e-3)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
@pytest.mark.parametrize("rows", HARD.values(), ids=HARD)
def test_what_is_read_is_finite_and_of_the_promised_width(code: Code, rows: Tensor) -> None:
    content = code.encode(rows)
    assert content.dtype == torch.uint8
    assert tuple(content.shape) == (len(rows), code.width(rows.shape[-1]))
    assert bool(code.decode(content, rows.shape[-1]).isfinite().all())


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_rows_do_not_know_of_each_other(code: Code) -> None:
    rows = torch.randn(6, 5, 9, generator=torch.Generator().manual_seed(1)) * 3
    together = code.encode(rows)
    alone = torch.stack([torch.stack([code.encode(row[None])[0] for row in sample]) for sample in rows])
    assert torch.equal(together, alone)
    assert torch.equal(code.decode(together, 9), torch.stack([code.decode(sample, 9) for sample in together]))
    strided = torch.zeros(6, 5, together.shape[-1] + 3, dtype=torch.uint8)
    strided[..., 1:-2] = together
    assert torch.equal(code.decode(strided[..., 1:-2], 9), code.decode(together, 9))


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_what_was_read_once_is_read_the_same_again(code: Code) -> None:
    once = there_and_back(code, HARD["usual"])
    twice = there_and_back(code, once)
    assert bool((divergence(once, twice, 1.0) < 2e-4).all())


def test_float32_is_exact_and_the_name_says_which_code() -> None:
    assert torch.equal(there_and_back(Float(32), HARD["huge"]), HARD["huge"])
    assert [code_from(code.name) for code in CODES] == CODES
    with pytest.raises(ValueError, match="expected a code"):
        code_from("zip")


def test_many_entries_take_wider_places() -> None:
    rows = torch.zeros(1, 70_000)
    rows[0, 69_999], rows[0, 256] = 20.0, 19.0
    found = there_and_back(Top(2), rows)
    assert found[0].topk(2).indices.tolist() == [69_999, 256]
    assert Top(2).width(70_000) == 2 * 3 + 2 + 6


def test_sizes_that_are_promised() -> None:
    check = 4
    assert Affine().width(10) + check <= 20
    assert 1000 <= Affine().width(1000) + check <= 1024
    assert Top(39).width(1000) + check <= 128


def test_a_thousand_classes_keep_within_their_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 1000, generator=generator) * 2
    logits[torch.arange(200), torch.arange(200)] += 12
    logits[torch.arange(200), torch.arange(200) + 1] += 9
    kl = {code.name: divergence(logits, there_and_back(code, logits), 4.0).mean() for code in (Affine(),)}
    assert float(kl["affine8"]) < 1e-4
    shares = logits.softmax(dim=-1).sort(dim=-1, descending=True).values[:, 39:]
    tail = float(shares.sum(dim=-1).mean())
    found = float(divergence(logits, there_and_back(Top(39), logits), 1.0).mean())
    assert found < tail  # what is lost is how the rest, itself so small, is spread


def test_the_smallest_code_that_is_close_enough_is_taken() -> None:
    live = torch.randn(64, 10, generator=torch.Generator().manual_seed(2)) * 6
    codes = candidates(10, None)
    kl = {code.name: float(divergence(live, there_and_back(code, live), 1.0).mean()) for code in codes}
    assert kl["affine8"] > kl["float16"] > kl["float32"] == 0.0
    assert choose(live, codes, 3 * kl["affine8"], [1.0]).name == "affine8"
    assert choose(live, codes, 0.5 * kl["affine8"], [1.0]).name == "float16"
    assert choose(live, codes, 0.5 * kl["float16"], [1.0]).name == "float32"
    assert choose(live, candidates(10, 3), 10.0, [1.0]) == Top(3)
    assert choose(live, candidates(10, 30), 1e-9, [4.0]).name == "float32"


def test_divergence_is_the_sum_over_classes() -> None:
    live, decoded = torch.tensor([[1.0, 0.0, -2.0]]), torch.tensor([[0.8, 0.1, -2.0]])
    p, q = ([math.exp(x / 2) for x in row[0].tolist()] for row in (live, decoded))
    p, q = ([x / sum(row) for x in row] for row in (p, q))
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(divergence(live, decoded, 2.0)) == pytest.approx(expected, abs=1e-12)
    fidelity = Fidelity([2.0, 1.0])
    fidelity.add(live, decoded)
    fidelity.add(live, live)
    assert fidelity.kl(2.0) == pytest.approx(expected / 2, abs=1e-12)
    assert fidelity.figures()["measured"] == 2
    assert fidelity.figures()["agreement"] == 1.0
