"""Detectors from a recipe: torchvision's heads on a pyramid over any backbone of torchvision or timm.

``potstill.models.detectors:faster_rcnn`` (two stages), ``:retinanet``, ``:fcos`` and ``:ssd`` or
``:ssdlite`` (one stage) take the same arguments: a backbone, the strides of the pyramid and its channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from potstill.errors import UserError
from potstill.models.detector import Detector
from potstill.models.pyramid import Pyramid

__all__ = ["faster_rcnn", "fcos", "retinanet", "ssd", "ssdlite"]

STRIDES = (8, 16, 32)
ASPECTS = (0.5, 1.0, 2.0)
PROBE = 128
"""A size for SSD, whose own resizing is never used."""


def _anchors(sizes: Sequence[float] | None, strides: Sequence[int], ratios: Sequence[float]) -> Any:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sizes = sizes or [4.0 * stride for stride in strides]
    if len(sizes) != len(strides):
        raise UserError("arguments.anchors", f"expected one size a level ({len(strides)}), got {len(sizes)}")
    if min(sizes) <= 0:
        raise UserError("arguments.anchors", f"expected sizes above 0, in pixels, got {list(sizes)}")
    return AnchorGenerator(tuple((size,) for size in sizes), (tuple(ratios),) * len(strides))


def faster_rcnn(
    num_classes: int,
    backbone: str = "mobilenet_v2",
    *,
    strides: Sequence[int] = STRIDES,
    channels: int = 128,
    anchors: Sequence[float] | None = None,
    hidden: int = 256,
    regions: int = 200,
    sampled: int = 128,
    weights: str | None = None,
    arguments: dict[str, Any] | None = None,
    folders: Sequence[Path] = (),
) -> Detector:
    """Faster R-CNN on a pyramid.

    Args:
        num_classes: Number of classes of objects, background not counted.
        backbone: Name of the backbone.
        strides: Of the pyramid's levels.
        channels: Of the pyramid.
        anchors: Side of the anchors of each level; four strides by default.
        hidden: Width of the box head.
        regions: Regions that the first stage proposes.
        sampled: Of those, how many learn in an image.
        weights: Of the backbone, as for :class:`Pyramid`.
        arguments: Of the backbone.
        folders: Where weights are looked up.

    Reference:
        Ren and others, "Faster R-CNN", 2015, https://arxiv.org/abs/1506.01497

    Example:
        >>> import torch
        >>> model = faster_rcnn(2, channels=8, hidden=8, arguments={"width_mult": 0.1}).eval()
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 100, 6])
    """
    from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    for name, number in (("hidden", hidden), ("regions", regions), ("sampled", sampled)):
        if number < 1:
            raise UserError(f"arguments.{name}", f"must be at least 1, got {number}")
    body = Pyramid(backbone, strides, channels, weights=weights, arguments=arguments, folders=folders)
    names = [str(place) for place in range(len(strides))]
    made = FasterRCNN(
        body,
        rpn_anchor_generator=_anchors(anchors, strides, ASPECTS),
        rpn_pre_nms_top_n_train=2 * regions,
        rpn_pre_nms_top_n_test=regions,
        rpn_post_nms_top_n_train=regions,
        rpn_post_nms_top_n_test=regions,
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(channels * 49, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_classes + 1),
        box_batch_size_per_image=sampled,
        box_detections_per_img=100,
    )
    return Detector(made)


def retinanet(
    num_classes: int,
    backbone: str = "mobilenet_v2",
    *,
    strides: Sequence[int] = STRIDES,
    channels: int = 128,
    anchors: Sequence[float] | None = None,
    weights: str | None = None,
    arguments: dict[str, Any] | None = None,
    folders: Sequence[Path] = (),
) -> Detector:
    """RetinaNet on a pyramid; arguments as of :func:`faster_rcnn`.

    Reference:
        Lin and others, "Focal Loss for Dense Object Detection", 2017, https://arxiv.org/abs/1708.02002
    """
    from torchvision.models.detection import RetinaNet

    body = Pyramid(backbone, strides, channels, weights=weights, arguments=arguments, folders=folders)
    generator = _anchors(anchors, strides, ASPECTS)
    return Detector(RetinaNet(body, num_classes + 1, anchor_generator=generator, detections_per_img=100))


def fcos(
    num_classes: int,
    backbone: str = "mobilenet_v2",
    *,
    strides: Sequence[int] = STRIDES,
    channels: int = 128,
    weights: str | None = None,
    arguments: dict[str, Any] | None = None,
    folders: Sequence[Path] = (),
) -> Detector:
    """FCOS, whose anchors are places, on a pyramid; arguments as of :func:`faster_rcnn`.

    Reference:
        Tian and others, "FCOS: Fully Convolutional One-Stage Object Detection", 2019,
        https://arxiv.org/abs/1904.01355
    """
    from torchvision.models.detection import FCOS

    if channels % 32:
        raise UserError("arguments.channels", f"FCOS takes multiples of 32, got {channels}")
    body = Pyramid(backbone, strides, channels, weights=weights, arguments=arguments, folders=folders)
    generator = _anchors([float(stride) for stride in strides], strides, (1.0,))
    return Detector(FCOS(body, num_classes + 1, anchor_generator=generator, detections_per_img=100))


def ssd(
    num_classes: int,
    backbone: str = "mobilenet_v2",
    *,
    strides: Sequence[int] = (16, 32),
    channels: int = 128,
    scales: Sequence[float] | None = None,
    separable: bool = False,
    weights: str | None = None,
    arguments: dict[str, Any] | None = None,
    folders: Sequence[Path] = (),
) -> Detector:
    """SSD on a pyramid; arguments as of :func:`faster_rcnn`.

    Args:
        num_classes: Number of classes of objects.
        backbone: Name of the backbone.
        strides: Of the pyramid's levels.
        channels: Of the pyramid.
        scales: Side of the boxes of each level as a share of the image's, and one more.
        separable: Depth-wise separable convolutions in the head, as SSDLite has.
        weights: Of the backbone, as for :class:`Pyramid`.
        arguments: Of the backbone.
        folders: Where weights are looked up.

    Reference:
        Liu and others, "SSD: Single Shot MultiBox Detector", 2015, https://arxiv.org/abs/1512.02325
    """
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD, SSDHead
    from torchvision.models.detection.ssdlite import SSDLiteHead

    body = Pyramid(backbone, strides, channels, weights=weights, arguments=arguments, folders=folders)
    generator = DefaultBoxGenerator([[2]] * len(strides), scales=None if scales is None else list(scales))
    given = [channels] * len(strides), generator.num_anchors_per_location(), num_classes + 1
    head = SSDLiteHead(*given, nn.BatchNorm2d) if separable else SSDHead(*given)
    size = (PROBE, PROBE)  # its own resizing is never used
    made = SSD(body, generator, size, num_classes + 1, head=head, detections_per_img=100, score_thresh=0.05)
    return Detector(made)


def ssdlite(
    num_classes: int, backbone: str = "mobilenet_v2", *, folders: Sequence[Path] = (), **arguments: Any
) -> Detector:
    """SSDLite: :func:`ssd` with a separable head.

    Reference:
        Sandler and others, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018,
        https://arxiv.org/abs/1801.04381
    """
    return ssd(num_classes, backbone, separable=True, folders=folders, **arguments)
