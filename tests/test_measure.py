"""Parameters, MACs, bytes and latency."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from potstill import measure


def test_macs_are_counted_as_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )
    by_hand = 16 * 8 * 27 + 16 * 8 * 9 + 8 * 16 * 5
    assert measure.macs(network, torch.zeros(1, 3, 8, 8)) == by_hand
    assert measure.macs(network, torch.zeros(4, 3, 8, 8)) == 4 * by_hand
    assert network.training


LENGTH, WIDTH = 50, 64
PROJECTIONS = 4 * LENGTH * WIDTH * WIDTH
PRODUCTS = 2 * LENGTH * LENGTH * WIDTH


@pytest.mark.parametrize(
    ("network", "by_hand"),
    [
        (
            nn.TransformerEncoderLayer(WIDTH, 4, 128, batch_first=True),
            PROJECTIONS + PRODUCTS + 2 * LENGTH * WIDTH * 128,
        ),
        (nn.LSTM(WIDTH, 32, batch_first=True), LENGTH * 4 * (WIDTH + 32) * 32),
        (nn.LSTM(WIDTH, 32, bidirectional=True, bias=False), 2 * LENGTH * 4 * (WIDTH + 32) * 32),
        (nn.LSTM(WIDTH, 32, 2), LENGTH * 4 * (WIDTH + 3 * 32) * 32),
        (nn.GRU(WIDTH, 32, batch_first=True), LENGTH * 3 * (WIDTH + 32) * 32),
    ],
)
def test_macs_see_into_fused_kernels(network: nn.Module, by_hand: int) -> None:
    batch_first = getattr(network, "batch_first", True)
    shape = (1, LENGTH, WIDTH) if batch_first else (LENGTH, 1, WIDTH)
    assert measure.macs(network, torch.randn(shape)) == by_hand


def test_macs_of_fused_attention() -> None:
    class Attention(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert measure.macs(Attention(), torch.randn(1, 4, LENGTH, WIDTH // 4)) == PRODUCTS
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_leaves_every_mode_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).eval())
    measure.macs(network, torch.zeros(2, 3))
    assert (network.training, network[0].training, network[1].training) == (True, True, False)
    with pytest.raises(RuntimeError):
        measure.macs(network, torch.zeros(2, 4))
    assert (network.training, network[0].training, network[1].training) == (True, True, False)


def test_shared_weights_count_once() -> None:
    one = nn.Linear(4, 4, bias=False)
    both = nn.Sequential(one, one)
    assert measure.parameters(both) == 16
    assert measure.size_bytes(both) == 64


def test_everything_of_two_networks_in_turns() -> None:
    order: list[str] = []

    class Noted(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            order.append("big" if self.out_features > 2 else "small")
            return super().forward(input)

    models = {"big": Noted(6, 5), "small": Noted(6, 2)}
    found = measure.measure(models, {"big": (6,), "small": (6,)}, batches=(1, 64), runs=4)
    assert found["big"].macs == 30
    assert found["small"].parameters == 14
    assert found["small"].bytes == 56
    assert set(found["big"].latency_ms) == {1, 64}
    for one in found.values():
        for latency in one.latency_ms.values():
            assert 0 < latency.low_ms <= latency.median_ms <= latency.high_ms
            assert latency.runs == 4
    assert order[:4] == ["big", "small", "big", "small"]


def test_a_network_keeps_its_mode_and_weights() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    before = network[1].running_mean.clone()
    measure.measure({"one": network}, {"one": (3,)}, batches=(2,), runs=3)
    assert network.training
    assert torch.equal(network[1].running_mean, before)


def test_the_stopwatch_runs() -> None:
    watch = measure.Stopwatch()
    first = watch.seconds
    assert 0 <= first <= watch.seconds


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_latency_on_a_gpu_waits_for_it() -> None:
    network = nn.Linear(4, 4).cuda()
    found = measure.measure({"one": network}, {"one": (4,)}, batches=(1,), runs=3)
    assert found["one"].latency_ms[1].median_ms > 0
