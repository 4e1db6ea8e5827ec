"""Capturing tensors by path: right tensors, no stale hooks, clear refusals."""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from potstill.errors import UserError
from potstill.matching.taps import Tapped, attention_in, first_tensor


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 3)
    )


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_taps_are_what_the_layers_compute() -> None:
    model, inputs = network(), torch.randn(7, 4)
    signals = Tapped(model, ["1", "2.0", "3:input"])(inputs)
    hidden = torch.tanh(model[0](inputs))
    assert torch.equal(signals.taps["1"], hidden)
    assert torch.equal(signals.taps["2.0"], model[2][0](hidden))
    assert torch.equal(signals.taps["3:input"], model[2](hidden))
    assert torch.equal(signals.output, model(inputs))


def test_gradients_flow_through_taps() -> None:
    model = network()
    Tapped(model, ["1"])(torch.randn(2, 4)).taps["1"].sum().backward()
    assert model[0].weight.grad is not None
    assert model[3].weight.grad is None


def test_a_path_named_twice_is_captured_once() -> None:
    tapped = Tapped(network(), ["1", "1"])
    assert tapped.paths == ("1",)
    assert list(tapped(torch.zeros(1, 4)).taps) == ["1"]


def test_unknown_path_names_the_role_and_the_nearest_layer() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer2 = nn.Linear(1, 1), nn.Linear(1, 1)

    with pytest.raises(UserError, match=r"^student: no layer 'layer9'; did you mean 'layer[12]'\?$"):
        Tapped(Named(), ["layer9"], role="student")
    with pytest.raises(UserError, match="no layer 'nothing'; known: layer1, layer2"):
        Tapped(Named(), ["nothing:input"])


def test_copy_writes_into_its_own_store() -> None:
    tapped = Tapped(network(), ["1"])
    inputs = torch.randn(3, 4)
    tapped(inputs)
    other = copy.deepcopy(tapped)
    with torch.no_grad():
        other.model[0].weight.zero_()
        other.model[0].bias.zero_()
    assert torch.equal(other(inputs).taps["1"], torch.zeros(3, 6))
    assert tapped(inputs).taps["1"].abs().sum() > 0
    assert num_hooks(other.model) == num_hooks(tapped.model) == 1
    other.remove()
    assert (num_hooks(other.model), num_hooks(tapped.model)) == (0, 1)


def test_bare_copy_of_the_network_keeps_no_activations() -> None:
    tapped = Tapped(network(), ["1"])
    tapped(torch.randn(3, 4))
    bare = copy.deepcopy(tapped.model)
    output = bare(torch.randn(2, 4))
    (hook,) = bare[1]._forward_hooks.values()
    assert not hook.args[0].tensors
    assert output.shape == (2, 3)


def test_hooks_leave_with_remove_and_with_the_wrapper() -> None:
    model = network()
    tapped = Tapped(model, ["1", "2:input"])
    assert num_hooks(model) == 2
    tapped.remove()
    assert num_hooks(model) == 0
    assert tapped(torch.zeros(1, 4)).taps == {}
    second = Tapped(model, ["1"])
    assert num_hooks(model) == 1
    del second
    gc.collect()
    assert num_hooks(model) == 0


def test_two_wrappers_of_one_network_do_not_mix() -> None:
    model = network()
    first, second = Tapped(model, ["1"]), Tapped(model, ["2"])
    assert list(first(torch.zeros(1, 4)).taps) == ["1"]
    assert list(second(torch.zeros(1, 4)).taps) == ["2"]


def test_nothing_is_kept_after_a_pass_that_failed() -> None:
    tapped = Tapped(network(), ["1"])
    with pytest.raises(RuntimeError):
        tapped(torch.zeros(1, 5))
    assert not tapped._store.open
    assert not tapped._store.tensors
    copy.deepcopy(tapped)


class Inplace(nn.Module):
    """An activation in place after ``first``, as a module or as a function."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.first, self.act, self.functional = nn.Linear(4, 4), nn.ReLU(inplace=True), functional

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        return relu(hidden, inplace=True) if self.functional else self.act(hidden)


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_overwritten_tap_is_refused(functional: bool, gradients: bool) -> None:
    with (
        torch.set_grad_enabled(gradients),
        pytest.raises(UserError, match="'first' was overwritten in place"),
    ):
        Tapped(Inplace(functional), ["first"])(torch.randn(2, 4))


def test_overwriting_layer_itself_can_be_tapped() -> None:
    signals = Tapped(Inplace(functional=False), ["act"])(torch.randn(2, 4))
    assert torch.equal(signals.taps["act"], signals.output)


def test_overwritten_input_is_refused() -> None:
    with pytest.raises(UserError, match="'act:input' was overwritten"):
        Tapped(Inplace(functional=False), ["act:input"])(torch.randn(2, 4))


def test_layer_that_runs_twice_or_never_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.shared(self.shared(inputs))

    with pytest.raises(UserError, match="'shared' ran 2 times"):
        Tapped(Shared(), ["shared"])(torch.zeros(1, 4))
    with pytest.raises(UserError, match="'unused' never ran"):
        Tapped(Shared(), ["unused"])(torch.zeros(1, 4))


def test_first_tensor_of_what_networks_answer() -> None:
    @dataclass
    class Answer:
        logits: Tensor

    one, two = torch.ones(1), torch.zeros(2)
    assert first_tensor((None, [one], two)) is one
    assert first_tensor({"hidden": two, "logits": one}) is one
    assert first_tensor({"hidden": two}) is two
    assert first_tensor(Answer(one)) is one
    assert first_tensor("text") is None


def test_network_without_a_tensor_is_refused() -> None:
    class Silent(nn.Module):
        def forward(self, inputs: Tensor) -> str:
            return "nothing"

    with pytest.raises(UserError, match="teacher: expected a tensor as output"):
        Tapped(Silent(), role="teacher")(torch.zeros(1))


def test_compiled_taps_equal_eager_ones() -> None:
    tapped, inputs = Tapped(network(), ["1", "2:input"]), torch.randn(3, 4)
    expected = tapped(inputs)
    torch.compiler.reset()
    compiled = torch.compile(tapped, backend="aot_eager")
    for _ in range(2):
        signals = compiled(inputs)
        torch.testing.assert_close(signals.output, expected.output)
        for path, tensor in expected.taps.items():
            torch.testing.assert_close(signals.taps[path], tensor)


def test_state_keys_are_the_networks_own() -> None:
    model = network()
    assert list(Tapped(model, ["1"]).model.state_dict()) == list(network().state_dict())


class Attending(nn.Module):
    """A module that gives its attention beside its output, or none, as fused kernels do."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        attention = (tokens @ tokens.transpose(1, 2)).softmax(dim=-1)
        return attention @ tokens, None if self.fused else attention.unsqueeze(1)


class First(nn.Module):
    def forward(self, answer: tuple[Tensor, Tensor | None]) -> Tensor:
        return answer[0].mean(dim=1)


def test_attention_is_tapped_out_of_what_a_module_gives() -> None:
    tokens = torch.randn(2, 3, 4)
    signals = Tapped(nn.Sequential(Attending(), First()), ["0", "0:attention"])(tokens)
    assert signals.taps["0"].shape == (2, 3, 4)
    assert signals.taps["0:attention"].shape == (2, 1, 3, 3)
    torch.testing.assert_close(signals.taps["0:attention"].sum(-1), torch.ones(2, 1, 3))


def test_attention_of_a_fused_kernel_says_what_to_switch() -> None:
    tapped = Tapped(nn.Sequential(Attending(fused=True), First()), ["0:attention"])
    with pytest.raises(UserError, match=r"layer '0' gives no attention; .*attn_implementation='eager'.*timm"):
        tapped(torch.randn(2, 3, 4))
    with pytest.raises(UserError, match="no layer ''"):
        Tapped(network(), [":attention"])


def test_attention_in_answers_of_modules() -> None:
    attention = torch.zeros(2, 4, 3, 3)
    assert attention_in({"hidden": torch.zeros(2, 3, 8), "attentions": (attention,)}) is attention
    assert attention_in(attention) is attention
    assert attention_in((torch.zeros(2, 4, 3, 5), None, "text")) is None


def test_the_networks_own_input_can_be_tapped_and_differentiated_by() -> None:
    model, inputs = network().requires_grad_(False), torch.randn(3, 4)
    tapped = Tapped(model, [":input", "2"])
    signals = tapped(inputs)
    assert torch.equal(signals.taps[":input"], inputs)
    assert not inputs.requires_grad
    (gradient,) = torch.autograd.grad(signals.output.sum(), signals.taps[":input"])
    own = inputs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(own).sum(), own)
    torch.testing.assert_close(gradient, expected)
    assert num_hooks(model) == 1
    with torch.no_grad():
        assert not tapped(inputs).output.requires_grad


def test_an_input_with_a_graph_of_its_own_stays_in_it() -> None:
    source = torch.randn(3, 4, requires_grad=True)
    Tapped(network(), [":input"])(2 * source).output.sum().backward()
    assert source.grad is not None


def test_frozen_layers_are_differentiated_by_where_the_input_is_not() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2)).requires_grad_(False)
    signals = Tapped(model, [":input", "0"])(torch.zeros(2, 3, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(signals.output[:, 0].sum(), signals.taps["0"])
    torch.testing.assert_close(gradient, model[2].weight[0].reshape(1, 3, 4).expand(2, 3, 4))
