"""What the page needs beyond ``result.json``: written by a run as ``report.json``, drawn by ``render``.

Everything here is plain values, so that a report can be drawn again years later, without the data,
the networks, or torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from potstill.errors import UserError
from potstill.files import write_json
from potstill.report.samples import Leaver, PictureRow, Sample, Sheet
from potstill.report.scenes import Detected

__all__ = [
    "ArmDetail",
    "Bin",
    "ClassDifference",
    "History",
    "PairRow",
    "ReportContent",
    "TermRow",
]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One bin of a reliability diagram; empty bins are left out.

    Attributes:
        confidence: Mean confidence in it, 0 to 1.
        accuracy: Share of right predictions in it, 0 to 1.
        count: Number of predictions in it.
    """

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True, kw_only=True)
class ArmDetail:
    """How one arm (``teacher``, ``control``, ``student``) answers, averaged over its seeds.

    Attributes:
        class_accuracy: Accuracy of each class, in the order of the class names; ``None`` without samples.
        bins: Its reliability diagram.
    """

    class_accuracy: tuple[float | None, ...]
    bins: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """Student less control on one class.

    Attributes:
        name: The class.
        control: Accuracy of the control.
        student: Accuracy of the student.
        interval: 95 % interval of their difference.
        samples: Test samples of the class.
    """

    name: str
    control: float
    student: float
    interval: tuple[float, float]
    samples: int


@dataclass(frozen=True, kw_only=True)
class History:
    """The validation rows of one trained cell.

    Attributes:
        arm: ``control`` or ``student``.
        seed: The seed.
        rows: One row an epoch, with ``epoch``, the metric, and ``loss``.
    """

    arm: str
    seed: int
    rows: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class TermRow:
    """One term of the objective.

    Attributes:
        name: Its name in the recipe (``labels`` for the supervised loss).
        loss: The loss it computes.
        weight: Its weight.
        detail: Its other settings as text, such as ``temperature 4``.
    """

    name: str
    loss: str
    weight: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """One matched pair of layers; shapes are of one sample, ``(16, 32, 32)``."""

    term: str
    student: str
    teacher: str
    student_shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]
    adapter: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class TokenBin:
    """Tokens whose position or frequency is alike.

    Attributes:
        start: The lowest; the next bin's ends it.
        mean: Mean divergence of their predictions from the teacher's, in nats.
        count: Number of them.
        agreement: Share of them whose likeliest token is the teacher's; ``None`` in older runs.
    """

    start: int
    mean: float
    count: int
    agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything that the page tells and ``result.json`` does not hold.

    Attributes:
        title: The page's heading, such as ``resnet8 taught by resnet56``.
        models: What each role is: ``{"teacher": "potstill.models.cifar:resnet56", "student": ...}``.
        setup: Paragraphs of plain text: what the teacher saw, what the student saw, what is measured on
            what.
        notes: Warnings and notes that a reader must not miss.
        class_names: Names of the classes in the order of the logits.
        temperature: The training temperature of the soft answers, 1 if there is none.
        details: By arm; the control may be absent.
        differences: One row a class that has test samples; empty without a control.
        histories: One a trained cell.
        samples: A few test images.
        terms: What the student imitated.
        pairs: Which layers were matched; empty if none were.
        leavers: A few test images of each early exit; empty without exits.
        exit_bins: The reliability diagram of each early exit by name.
        divergences: Divergence from the teacher by token, by ``position`` and ``frequency``, then by arm.
        generations: Beginnings of texts (``prompt``) and what each arm writes after them.
        likeness: Of each arm's answers to the teacher's, as ``likeness`` gives it.
        pictures: A few test images and what generators make of them.
        sheets: Real images, and what generators make of the same noise.
        insides: How alike each arm's layers are to the teacher's, as ``insides`` gives it.
        detected: Of detectors, what the arms see.
    """

    title: str
    models: Mapping[str, str]
    setup: tuple[str, ...]
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    temperature: float = 1.0
    details: Mapping[str, ArmDetail] = field(default_factory=dict)
    differences: tuple[ClassDifference, ...] = ()
    histories: tuple[History, ...] = ()
    samples: tuple[Sample, ...] = ()
    terms: tuple[TermRow, ...] = ()
    pairs: tuple[PairRow, ...] = ()
    leavers: tuple[Leaver, ...] = ()
    exit_bins: Mapping[str, tuple[Bin, ...]] = field(default_factory=dict)
    divergences: Mapping[str, Mapping[str, tuple[TokenBin, ...]]] = field(default_factory=dict)
    generations: tuple[Mapping[str, str], ...] = ()
    likeness: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pictures: tuple[PictureRow, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    insides: Mapping[str, Mapping[str, Sequence[Sequence[float]]]] = field(default_factory=dict)
    detected: Detected | None = None

    def save(self, path: Path) -> None:
        """Write as JSON, aside and then renamed."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> ReportContent:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: If the file is missing, is no JSON, or has other fields.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_python(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(
                str(path), f"cannot read what the report is drawn from: {error.strerror}"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UserError(
                str(path), f"expected the contents of a report, at {place!r}: {first['msg']}"
            ) from error
        except ValueError as error:
            raise UserError(str(path), f"expected JSON, cannot read it: {error}") from error
