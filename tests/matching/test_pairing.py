"""Layers are recorded as they run and paired by stage, size or depth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.matching.pairing import Pair, auto_pairs, explicit_pairs
from potstill.matching.recording import LayerShape, record
from potstill.models import cifar


class Block(nn.Module):
    """conv, in-place activation, a gate over channels."""

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, 3, stride=stride, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Conv2d(out, out, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = relu(self.conv(inputs), inplace=True)
        return hidden * torch.sigmoid(self.gate(self.pool(hidden)))


class Staged(nn.Module):
    """Three stages of ``depth`` blocks, named as networks for small images are."""

    def __init__(self, width: int, depth: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layer1 = nn.Sequential(*(Block(width, width) for _ in range(depth)))
        self.layer2 = nn.Sequential(
            Block(width, 2 * width, 2), *(Block(2 * width, 2 * width) for _ in range(depth))
        )
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.layer3(self.layer2(self.layer1(self.stem(inputs))))
        return self.linear(self.pool(hidden).flatten(1))


class Encoder(nn.Module):
    """Tokens: patches, blocks, a norm, a head on the mean."""

    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, width, batch_first=True, dropout=0.0) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.patch(inputs).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(dim=1))


IMAGES = torch.zeros(2, 3, 16, 16)


def test_record_lists_shapes_and_leaves_the_network_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = {layer.path: layer for layer in record(model, IMAGES + 1)}
    assert layers["0:input"].shape == (2, 3, 16, 16)
    assert (layers["0"].kind, layers["0"].shape) == ("maps", (2, 4, 14, 14))
    assert (layers["2"].kind, layers["2"].shape) == ("vector", (2, 784))
    assert [module.training for module in model] == [True, False, True, True]
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_record_takes_its_hooks_off_a_network_that_fails() -> None:
    model = nn.Sequential(nn.Linear(3, 3)).train()
    with pytest.raises(RuntimeError):
        record(model, torch.zeros(2, 4))
    assert not model[0]._forward_hooks
    assert model.training


def test_record_marks_what_cannot_be_tapped() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.act(self.first(self.act(inputs + 1)))

    layers = {layer.path: layer.stable for layer in record(Shared(), torch.zeros(1, 4))}
    assert layers.pop(":input")
    assert layers == {"act": False, "act:input": False, "first": False, "first:input": True}


def test_stages_pair_by_size_and_whole_modules_win() -> None:
    pairs = auto_pairs(record(Staged(4, 1), IMAGES), record(Staged(8, 3), IMAGES), signal="maps")
    assert [(pair.student, pair.teacher) for pair in pairs] == [(f"layer{k}", f"layer{k}") for k in (1, 2, 3)]
    assert [pair.reason for pair in pairs] == ["same size 16x16", "same size 8x8", "same size 4x4"]


def test_features_of_conv_nets_are_their_maps() -> None:
    layers = record(Staged(4, 1), IMAGES)
    assert auto_pairs(layers, layers) == auto_pairs(layers, layers, signal="maps")


def test_sizes_that_never_meet_pair_by_depth() -> None:
    def maps(*sizes: int) -> list[LayerShape]:
        return [LayerShape(f"stage{size}", "maps", (2, 4, size, size)) for size in sizes]

    pairs = auto_pairs(maps(14, 7), maps(16, 8, 4, 2))
    assert [(pair.student, pair.teacher) for pair in pairs] == [("stage14", "stage8"), ("stage7", "stage2")]
    assert pairs[0].reason == "stage 1 of 2 with stage 2 of 4"


def test_bigger_maps_after_smaller_ones_are_no_stage() -> None:
    layers = [
        LayerShape(path, "maps", (2, 4, size, size)) for path, size in (("down", 8), ("mid", 4), ("up", 8))
    ]
    assert [pair.student for pair in auto_pairs(layers, layers)] == ["down", "mid"]


def test_overwritten_maps_are_not_chosen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
    layers = record(model, IMAGES)
    assert [pair.student for pair in auto_pairs(layers, layers)] == ["1", "3"]


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (2, 6, [("blocks.0", "blocks.2"), ("blocks.1", "blocks.5")]),
        (3, 3, [("blocks.0", "blocks.0"), ("blocks.1", "blocks.1"), ("blocks.2", "blocks.2")]),
        (4, 2, [("blocks.1", "blocks.0"), ("blocks.3", "blocks.1")]),
    ],
)
def test_token_blocks_pair_evenly_by_depth(
    student: int, teacher: int, expected: list[tuple[str, str]]
) -> None:
    pairs = auto_pairs(record(Encoder(student), IMAGES), record(Encoder(teacher), IMAGES))
    assert [(pair.student, pair.teacher) for pair in pairs] == expected


def test_plain_vectors_pair_the_last_hidden_one() -> None:
    small = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    big = nn.Sequential(
        nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh()), nn.Linear(16, 3)
    )
    rows = torch.zeros(2, 4)
    assert auto_pairs(record(small, rows), record(big, rows)) == [Pair("1", "0", "last hidden vector")]


def test_different_families_are_refused() -> None:
    maps, tokens = record(Staged(4, 1), IMAGES), record(Encoder(2), IMAGES)
    with pytest.raises(
        UserError, match=r"^distill.x.layers: .*student has maps and the teacher has tokens; list them"
    ):
        auto_pairs(maps, tokens, where="distill.x.layers")
    vectors = record(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.zeros(2, 4))
    with pytest.raises(UserError, match=r"one kind \(maps\).*teacher has none of these"):
        auto_pairs(maps, vectors, signal="maps")


def test_explicit_lists_in_all_three_forms() -> None:
    layers = record(Staged(4, 1), IMAGES)
    same = explicit_pairs(["layer2", "linear:input"], layers, layers, where="w")
    assert [(pair.student, pair.teacher) for pair in same] == [
        ("layer2", "layer2"),
        ("linear:input", "linear:input"),
    ]
    listed = explicit_pairs([["layer1", "layer2"]], layers, layers, where="w")
    mapped = explicit_pairs({"layer1": "layer2"}, layers, layers, where="w")
    assert listed == mapped == [Pair("layer1", "layer2", "as listed")]


def test_explicit_path_that_is_not_there() -> None:
    layers = record(Staged(4, 1), IMAGES)
    with pytest.raises(UserError) as caught:
        explicit_pairs([["layer1", "layer9"]], layers, layers, where="distill.feature_mse.layers")
    assert str(caught.value).startswith(
        "distill.feature_mse.layers: the teacher has no layer 'layer9'; did you mean 'layer"
    )


def test_explicit_path_that_cannot_be_tapped() -> None:
    layers = record(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)), IMAGES)
    assert explicit_pairs(["1"], layers, layers, where="w") == [Pair("1", "1", "as listed")]
    with pytest.raises(
        UserError, match="the student's layer '0' cannot be tapped: it runs more than once, or what follows"
    ):
        explicit_pairs(["0"], layers, layers, where="w")


def test_real_networks_of_other_libraries() -> None:
    torchvision = pytest.importorskip("torchvision")
    example = torch.zeros(1, 3, 64, 64)
    small, big, mobile = (
        record(getattr(torchvision.models, name)(weights=None), example)
        for name in ("resnet18", "resnet50", "mobilenet_v2")
    )
    stages = ["relu", "layer1", "layer2", "layer3", "layer4"]
    assert [(pair.student, pair.teacher) for pair in auto_pairs(small, big, signal="maps")] == [
        (stage, stage) for stage in stages
    ]
    pairs = auto_pairs(mobile, small, signal="maps")
    assert [pair.teacher for pair in pairs] == stages
    assert [pair.student for pair in pairs] == [
        "features.1",
        "features.3",
        "features.6",
        "features.13",
        "features",
    ]


def test_shrinking_inside_a_block_does_not_split_the_stage_before() -> None:
    bottleneck = nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 3, stride=2, padding=1))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), bottleneck)
    layers = record(model, IMAGES)
    assert [pair.student for pair in auto_pairs(layers, layers)] == ["1", "2"]
    wrapped = record(nn.Sequential(model), IMAGES)
    assert [pair.student for pair in auto_pairs(wrapped, wrapped)] == ["0.1", "0"]


def test_windows_folded_into_the_batch_are_no_stage() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.window = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            maps = self.conv(inputs)
            return maps + self.window(maps.reshape(8, 4, 8, 8)).reshape(maps.shape)

    layers = record(Windows(), IMAGES)
    assert [pair.student for pair in auto_pairs(layers, layers)] == ["conv"]


def paired(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.student, pair.teacher) for pair in pairs]


def test_gradients_pair_the_inputs() -> None:
    layers = record(Staged(4, 1), IMAGES)
    assert layers[0].path == ":input"
    assert paired(auto_pairs(layers, layers, signal="gradients")) == [(":input", ":input")]


def test_patches_of_a_network_of_tokens_are_no_maps_to_compare() -> None:
    tokens = record(Encoder(2), IMAGES)
    with pytest.raises(UserError, match=r"one kind \(maps\).*student has tokens and the teacher has tokens"):
        auto_pairs(tokens, tokens, signal="maps")


def test_maps_with_channels_last_are_no_stage() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.LayerNorm(4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.norm(self.conv(inputs).permute(0, 2, 3, 1)).mean(dim=(1, 2))

    layers = record(Turned(), IMAGES)
    assert paired(auto_pairs(layers, layers, signal="maps")) == [("conv", "conv")]


def test_vgg_and_mobilenet() -> None:
    models = pytest.importorskip("torchvision").models
    example = torch.zeros(1, 3, 64, 64)
    mobile, vgg = record(models.mobilenet_v2(), example), record(models.vgg11_bn(), example)
    assert paired(auto_pairs(mobile, vgg, signal="maps")) == [
        ("features.1", "features.6"),
        ("features.3", "features.13"),
        ("features.6", "features.20"),
        ("features.13", "features.27"),
        ("features", "features"),
    ]
    hidden = [("classifier:input", "classifier.6:input")]  # 1280 and 4096 wide
    assert paired(auto_pairs(mobile, vgg, signal="vectors")) == hidden


def vision_transformer(layers: int) -> nn.Module:
    models = pytest.importorskip("torchvision").models
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=layers, num_heads=2, hidden_dim=16, mlp_dim=32
    )


def test_vision_transformers_pair_blocks_by_depth_and_say_that_attention_is_fused() -> None:
    example = torch.zeros(1, 3, 32, 32)
    small, big = record(vision_transformer(1), example), record(vision_transformer(4), example)
    name = "encoder.layers.encoder_layer_"
    assert paired(auto_pairs(small, big)) == [(f"{name}0", f"{name}3")]
    assert paired(auto_pairs(big, big, signal="tokens", at="last")) == [(f"{name}3", f"{name}3")]
    with pytest.raises(UserError, match=r"^w: auto finds no attention .* in the student; .*set_fused_attn"):
        auto_pairs(small, big, signal="attention", where="w")


def test_a_vision_transformer_and_a_convolutional_network_meet_in_their_last_vectors() -> None:
    models = pytest.importorskip("torchvision").models
    example = torch.zeros(1, 3, 32, 32)
    residual, transformer = record(models.resnet18(), example), record(vision_transformer(2), example)
    with pytest.raises(UserError, match=r"student has maps and the teacher has tokens; .*vectors pooled"):
        auto_pairs(residual, transformer)
    assert paired(auto_pairs(residual, transformer, signal="vectors")) == [("fc:input", "heads.head:input")]
    assert paired(auto_pairs(residual, transformer, signal="gradients")) == [(":input", ":input")]


def test_attention_of_timm_without_fused_kernels() -> None:
    timm = pytest.importorskip("timm")

    def layers(depth: int) -> list[LayerShape]:
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=depth, embed_dim=48)
        for block in model.blocks:
            block.attn.fused_attn = False
        return record(model, torch.zeros(1, 3, 32, 32))

    pairs = auto_pairs(layers(1), layers(2), signal="attention")
    assert paired(pairs) == [("blocks.0.attn.attn_drop", "blocks.1.attn.attn_drop")]
    assert pairs[0].reason == "attention 1 of 1 with attention 2 of 2"


def bert(layers: int, attention: str = "eager") -> list[LayerShape]:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8 * layers,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        attn_implementation=attention,
    )
    model = transformers.BertForSequenceClassification(config)
    return record(model, torch.zeros(2, 5, dtype=torch.int64))


def test_bert_learns_from_a_bert_of_more_layers() -> None:
    small, big, name = bert(2), bert(4), "bert.encoder.layer."
    assert paired(auto_pairs(small, big)) == [
        (f"{name}0:input", f"{name}0:input"),  # the embeddings
        (f"{name}0", f"{name}1"),
        (f"{name}1", f"{name}3"),
    ]
    assert paired(auto_pairs(small, big, signal="attention")) == [
        (f"{name}0.attention.self:attention", f"{name}1.attention.self:attention"),
        (f"{name}1.attention.self:attention", f"{name}3.attention.self:attention"),
    ]
    assert paired(auto_pairs(small, big, signal="vectors")) == [("classifier:input", "classifier:input")]
    explicit = explicit_pairs([f"{name}0.attention.self:attention"], small, big, where="w")
    assert explicit[0].reason == "as listed"


def test_attention_of_a_fused_bert_says_what_to_switch() -> None:
    fused, path = bert(1, "sdpa"), "bert.encoder.layer.0.attention.self:attention"
    with pytest.raises(UserError, match=r"no attention .* in the student; .*attn_implementation='eager'"):
        auto_pairs(fused, fused, signal="attention")
    with pytest.raises(UserError, match=rf"^w: the student's '{path}' gives no attention; .*'eager'"):
        explicit_pairs([path], fused, fused, where="w")


def test_losses_of_patterns_look_before_the_activation() -> None:
    images = torch.randn(2, 3, 32, 32)
    objective = Objective({"activation_boundary": {}}, lambda signals, batch: signals.output.sum(1))
    objective.build(cifar.resnet8(), images, lambda: record(cifar.resnet20(), images))
    assert [pair.student for pair in objective.plan] == [f"layer{n}.0.activation:input" for n in (1, 2, 3)]
    assert [pair.teacher for pair in objective.plan] == [f"layer{n}.2.activation:input" for n in (1, 2, 3)]
    after = Objective(
        {"activation_pattern": {"layers": ["layer1"]}}, lambda signals, batch: signals.output.sum(1)
    )
    with pytest.raises(UserError, match=r"'layer1' has no value below 0.*such as 'layer1\.0\.bn2'"):
        after.build(cifar.resnet8(), images, lambda: record(cifar.resnet20(), images))
