"""Views of texts: pure, with the rates they promise, and nothing covered that may not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from potstill.augment import AugmentConfig, TextAugment
from potstill.augment.draws import Draws
from potstill.augment.mixing import CutMix
from potstill.augment.text import SpanMasking, TokenDropout, by_place
from potstill.errors import UserError
from potstill.run import run
from potstill.sections import read_section

CONFIGS = {
    "dropout": AugmentConfig(token_dropout=TokenDropout(rate=0.3)),
    "spans": AugmentConfig(span_masking=SpanMasking(rate=0.3, stop=0.3, longest=5)),
    "both": AugmentConfig(
        token_dropout=TokenDropout(rate=0.2, probability=0.5), span_masking=SpanMasking(probability=0.7)
    ),
}
MASK = 9


def texts(count: int = 40, length: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Token numbers from 10 on; the first is special, the last third of every other text is padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1000, (count, length), generator=generator)
    may = torch.ones(count, length, dtype=torch.bool)
    may[:, 0] = False
    may[::2, 2 * length // 3 :] = False
    return ids, may


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_view_of_a_text_does_not_depend_on_batch_order_or_padding(config: AugmentConfig) -> None:
    augment, (ids, may), index = TextAugment(config.coverings(), seed=3), texts(), torch.arange(100, 140)
    whole = augment(ids, may, index, 2, replacement=MASK)
    assert torch.equal(whole[~may], ids[~may])
    changed = whole != ids
    assert bool((whole[changed] == MASK).all())
    assert 0.05 < float(changed[may].float().mean()) < 0.45
    order = torch.randperm(40)
    assert torch.equal(augment(ids[order], may[order], index[order], 2, replacement=MASK), whole[order])
    single = [
        augment(ids[n : n + 1], may[n : n + 1], index[n : n + 1], 2, replacement=MASK) for n in range(40)
    ]
    assert torch.equal(torch.cat(single), whole)
    longer = torch.nn.functional.pad(ids, (0, 9)), torch.nn.functional.pad(may, (0, 9))
    assert torch.equal(augment(*longer, index, 2, replacement=MASK)[:, :24], whole)
    for other in (
        TextAugment(config.coverings(), seed=4)(ids, may, index, 2, replacement=MASK),
        augment(ids, may, index, 3, replacement=MASK),
        augment(ids, may, index + 1, 2, replacement=MASK),
    ):
        assert not torch.equal(other, whole)


@pytest.mark.parametrize(
    "config",
    [
        SpanMasking(rate=0.15),
        SpanMasking(rate=0.5, stop=0.5, longest=3),
        SpanMasking(rate=0.8, stop=0.1, longest=20),
        SpanMasking(rate=0.3, stop=1.0),
        SpanMasking(rate=0.0),
    ],
)
def test_every_place_is_covered_at_the_rate_that_was_asked_for(config: SpanMasking) -> None:
    covered = config.covered(12, Draws(torch.arange(20_000), 0, 0, 64)).double().mean(dim=0)
    assert covered.tolist() == pytest.approx([config.rate] * 12, abs=0.015)


def test_spans_are_what_a_slow_walk_finds() -> None:
    config, draws = SpanMasking(rate=0.4, stop=0.3, longest=4), Draws(torch.arange(50), 7, 1, 64)
    covered = config.covered(15, draws)
    begins, numbers = by_place(draws, 1, 18), by_place(draws, 2, 18)
    for row in range(50):
        expected = set()
        for place in range(18):
            if float(begins[row, place]) < config.chance():
                length, left = 1, 1.0 - float(numbers[row, place])
                while length < 4 and left < 0.7**length:  # longer than k with probability 0.7 ** k
                    length += 1
                expected |= set(range(place - 3, place - 3 + length))
        assert covered[row].nonzero()[:, 0].tolist() == sorted(place for place in expected if 0 <= place < 15)


def test_the_chance_of_a_span_solves_its_formula() -> None:
    assert SpanMasking(rate=0.3, stop=1.0).chance() == pytest.approx(0.3)
    # two places: 1 - (1 - q) (1 - q / 2) = 0.28 at q = 0.2
    assert SpanMasking(rate=0.28, stop=0.5, longest=2).chance() == pytest.approx(0.2)
    assert SpanMasking(rate=0.0).chance() == 0.0


def test_dropped_tokens_do_not_look_at_their_neighbours() -> None:
    covered = TokenDropout(rate=0.25).covered(30, Draws(torch.arange(4000), 0, 0, 0)).double()
    assert float(covered.mean()) == pytest.approx(0.25, abs=0.01)
    assert (
        abs(float(torch.corrcoef(torch.stack([covered[:, :-1].flatten(), covered[:, 1:].flatten()]))[0, 1]))
        < 0.02
    )


def test_what_does_not_fit_is_said() -> None:
    augment, (ids, may) = TextAugment(CONFIGS["both"].coverings(), seed=0), texts()
    with pytest.raises(ValueError, match=r"expected ids and may \(N, L\), index \(N,\), got"):
        augment(ids, may[:, 1:], torch.arange(40), 0, replacement=MASK)

    def read(**given: Any) -> Any:
        return read_section(AugmentConfig, given, "augment")

    assert read(token_dropout=0.1, span_masking={}) == AugmentConfig(
        token_dropout=TokenDropout(rate=0.1), span_masking=SpanMasking()
    )
    for given, message in (
        ({"token_dropout": 1.5}, "augment.token_dropout.rate: must be <= 1, got 1.5"),
        ({"span_masking": 0.95}, "augment.span_masking.rate: must be <= 0.9, got 0.95"),
        ({"span_masking": {"stop": 0}}, "augment.span_masking.stop: must be > 0, got 0"),
        ({"span_masking": {"longest": 0}}, "augment.span_masking.longest: must be >= 1, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            read(**given)


def test_a_task_refuses_what_changes_other_samples(tiny: Any, tmp_path: Any) -> None:
    message = "augment.span_masking: changes texts; the samples of this task are images"
    with pytest.raises(UserError, match=message):
        run(
            tiny.recipe,
            data=tiny.root,
            out=tmp_path / "run",
            overrides=["augment.span_masking=0.2"],
            echo=lambda line: None,
        )
    with pytest.raises(UserError, match=r"augment.cutmix: changes images; .* are texts"):
        AugmentConfig(cutmix=CutMix()).check_samples("texts")
    AugmentConfig(token_dropout=TokenDropout(rate=0.1)).check_samples("texts")
    AugmentConfig(cutmix=CutMix(), crop=1).check_samples("images")
