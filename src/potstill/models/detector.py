"""One way to call torchvision's detectors: boxes for users, raw answers of the heads for terms.

A detector is a network with ``backbone`` and either ``rpn`` and ``roi_heads`` (two stages, as torchvision's
Faster R-CNN) or ``head``, ``anchor_generator`` and ``postprocess_detections`` (one stage: RetinaNet, FCOS,
SSD). Images come as one batch of one size, normalised; the detector's own resizing is never used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from potstill.batch import Signals
from potstill.errors import UserError
from potstill.matching.detected import HEADED
from potstill.matching.terms import Term
from potstill.models import _one_stage, _two_stages
from potstill.models._rows import IGNORED, UNLABELLED, renamed, size_of

__all__ = ["Detector"]


class Detector(nn.Module):
    """A detector of torchvision, or one that follows its contract.

    Called with images alone it answers with boxes; with ``boxes`` and ``labels`` (in training) or with
    ``proposals`` (of another network) with the raw answers of its heads, as :class:`Signals` whose taps are,
    for each head (``rpn``, where there is one, and ``box``)::

        HEAD.classes (N, R, C)  logits of a softmax whose first class is the background, or
        HEAD.scores  (N, R, C)  logits of a sigmoid each
        HEAD.boxes   (N, R, 4) or, one for each class, (N, R, C, 4)
        HEAD.anchors (N, R, 4)  what boxes are deltas of, in pixels
        HEAD.coding  (4,)       how deltas are weighed; where it lacks, boxes are distances from a place
        HEAD.corners            the boxes themselves, in pixels, as many as HEAD.boxes
        HEAD.labels  (N, R)     what the labels say of each row (0 background, -1 not asked,
                                -2 asked where nothing is known)
        HEAD.deltas  (N, R, 4)  what they say of its box

    The last two only in training. ``answers`` (N, 100, 6) are the boxes that it would answer with.

    Args:
        model: The network.
        answering: Also give ``answers`` beside raw answers: what the teacher is confident of.

    Attributes:
        scoring: Whether it is asked about regions; else it gives its final boxes alone, as ``answers``.
        order: Where its classes are not the data's: its own number, from 1, of each class of the data. It
            then answers with the data's classes; those that the data lacks are left out.
    """

    def __init__(self, model: nn.Module, *, answering: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.answering = answering
        self.scoring = True
        self.order: list[int] | None = None
        self.two_stages = hasattr(model, "rpn") and hasattr(model, "roi_heads")
        missing = [name for name in ("backbone", "head", "anchor_generator") if not hasattr(model, name)]
        if missing and not (self.two_stages and hasattr(model, "backbone")):
            raise UserError(
                "model",
                f"expected a detector as torchvision's: backbone with rpn and roi_heads, or with head and "
                f"anchor_generator; {type(model).__name__} lacks {', '.join(missing)}",
            )
        for more in ("mask", "keypoint"):
            if getattr(getattr(model, "roi_heads", None), f"{more}_predictor", None) is not None:
                raise UserError(
                    "model", f"{type(model).__name__} also learns {more}s; expected a detector of boxes alone"
                )

    def forward(
        self,
        images: Tensor,
        boxes: Tensor | None = None,
        labels: Tensor | None = None,
        proposals: Tensor | None = None,
    ) -> Tensor | Signals:
        """Answer to a batch.

        Args:
            images: ``(N, 3, H, W)``, normalised.
            boxes: True boxes ``(N, n, 4)`` in pixels, for training.
            labels: Their classes ``(N, n)``, counted from 1; 0 fills rows without a box; below 0 in images of
                which nothing is known: they have no loss, and no row of theirs a label.
            proposals: Regions to score, ``(N, R, 4)``; a detector of one stage scores its anchors instead.

        Returns:
            Boxes ``(N, 100, 6)``: left, top, right, bottom, score, class counted from 1; rows of zeros where
            there are fewer. In training :class:`Signals` with the loss of each image ``(N,)`` as output;
            with proposals the same without a loss.
        """
        maps = self.model.backbone(images)
        maps = OrderedDict([("0", maps)]) if isinstance(maps, Tensor) else maps
        if boxes is not None and labels is not None:
            targets = [
                {"boxes": some[which > 0], "labels": which[which > 0]}
                for some, which in zip(boxes, labels, strict=True)
            ]
            return _without_labels(self._raw(images, maps, targets, None), (labels < 0).any(dim=1))
        if proposals is not None and self.scoring:
            return self._raw(images, maps, None, proposals)
        found = self._found(images, maps)
        return found if proposals is None else Signals(found, {"answers": found, "size": size_of(images)})

    def _found(self, images: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        """Its final boxes, their classes numbered as the data's."""
        if self.two_stages:
            found = _two_stages.found(self.model, images, maps)
        else:
            found = _one_stage.answers(self.model, images, *_one_stage.raw_answers(self.model, images, maps))
        return found if self.order is None else renamed(found, self.order)

    def asked(self, terms: Iterable[Term]) -> None:
        """Hear what it will be compared by, as a teacher: final boxes, what it says of regions, or both."""
        terms = list(terms)
        self.answering = any(
            term.options.get("regions") == "confident" or term.signal == "response" for term in terms
        )
        self.scoring = any(term.signal in HEADED and term.signal != "response" for term in terms)

    def _raw(
        self,
        images: Tensor,
        maps: Mapping[str, Tensor],
        targets: list[dict[str, Tensor]] | None,
        proposals: Tensor | None,
    ) -> Signals:
        if self.two_stages:
            said = _two_stages.signals(self.model, images, maps, targets, proposals, answering=self.answering)
        else:
            said = _one_stage.signals(self.model, images, maps, targets, answering=self.answering)
        return said if self.order is None else self._reordered(said, self.order)

    def _reordered(self, said: Signals, order: list[int]) -> Signals:
        """The same answers, their classes numbered as the data's; number 0 is the background's."""
        taps = dict(said.taps)
        rows = torch.tensor([0, *order], device=said.output.device)
        for name in ("box.classes", "box.scores", "box.boxes", "box.corners"):
            if name in taps and (taps[name].dim() == 4 or name not in ("box.boxes", "box.corners")):
                taps[name] = taps[name].index_select(2, rows)
        if "answers" in taps:
            taps["answers"] = renamed(taps["answers"], order)
        return Signals(taps["box.classes"] if "box.classes" in taps else taps["box.scores"], taps)

    def beside(self, inputs: Mapping[str, Tensor], given: Signals) -> dict[str, Tensor]:
        """The same inputs, to be scored on the regions of another network, at this one's resolution."""
        theirs = given.taps.get("box.anchors")
        size = given.taps.get("size")
        if not (self.two_stages and self.scoring) or theirs is None or size is None:
            return dict(inputs)
        height, width = inputs["images"].shape[2:]
        scale = theirs.new_tensor([width, height, width, height]) / size.repeat(2)
        return {**inputs, "proposals": theirs * scale}


def _without_labels(said: Signals, unknown: Tensor) -> Signals:
    """The same, without a loss and labels in images ``(N,)`` of which nothing is known."""
    if not bool(unknown.any()):
        return said
    taps = dict(said.taps)
    for name in [name for name in taps if name.endswith(".labels")]:
        blank = torch.where(taps[name] == IGNORED, IGNORED, UNLABELLED)
        taps[name] = torch.where(unknown[:, None], blank, taps[name])
    return Signals(said.output.masked_fill(unknown, 0.0), taps)
