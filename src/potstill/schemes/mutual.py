"""Networks that learn together: each is taught by the labels and by all the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import Tensor, nn

from potstill.batch import Batch, Share, Signals, Step
from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.matching.recording import record
from potstill.matching.taps import Tapped
from potstill.schemes.offline import Offline, StudentPart
from potstill.schemes.paraphrasing import refuse_paraphrasers
from potstill.schemes.stages import Stage
from potstill.schemes.ties import tied

__all__ = ["Mutual"]


class Mutual(nn.Module):
    """Peers that start from different weights and teach each other, one forward pass of each a batch.

    Every peer minimises the supervised loss plus, for each term, the mean (or sum) over the other peers
    of the term with that peer, detached, as its teacher. Peers may be of any architecture.

    Args:
        peers: At least two networks; the first has the student's architecture.
        objective: What every peer minimises; ``kl`` at temperature 1 is the paper's.
        example: A small batch, needed where terms compare layers.
        samples: Size of the training set, needed by losses that remember every sample.
        over_peers: ``mean`` (the paper's) or ``sum`` over the other peers.
        alike: How many peers, from the first, have the student's architecture: of these the best by
            validation is kept. All by default.

    Raises:
        UserError: If there are fewer than two peers, an example is missing, layers cannot be compared, or
            a term asks for gradients of the other peer.

    Reference:
        Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", 2017, https://arxiv.org/abs/1706.00384

    >>> import torch
    >>> from torch.nn.functional import cross_entropy
    >>> batch = Batch({"student": torch.randn(8, 4)}, torch.arange(8) % 3, None, torch.arange(8))
    >>> supervised = lambda signals, batch: cross_entropy(signals.output, batch.target, reduction="none")
    >>> scheme = Mutual([nn.Linear(4, 3), nn.Linear(4, 3)], Objective({"kl": {}}, supervised))
    >>> sorted(scheme(batch).parts)
    ['peer1.kl', 'peer1.labels', 'peer2.kl', 'peer2.labels']
    """

    def __init__(
        self,
        peers: Sequence[nn.Module],
        objective: Objective,
        *,
        example: Batch | None = None,
        samples: int | None = None,
        over_peers: Literal["mean", "sum"] = "mean",
        alike: int | None = None,
    ) -> None:
        super().__init__()
        if len(peers) < 2:
            raise UserError("scheme.peers", f"expected at least two peers, got {len(peers)}")
        for term in objective.terms.values():
            if term.signal == "gradients":
                raise UserError(term.where, "needs the other peer's gradients, which a detached peer has not")
            if term.config.adapter == "fitted":
                raise UserError(f"{term.where}.adapter", "fitted has no meaning where peers know nothing yet")
        if objective.needs_layers and example is None:
            raise UserError("example", "missing; terms that compare layers need a small batch to plan them")
        refuse_paraphrasers(objective)
        for hear in filter(None, (getattr(peer, "asked", None) for peer in peers)):
            hear(objective.terms.values())  # a detector answers what its terms ask for
        self.names = tuple(f"peer{number}" for number in range(1, len(peers) + 1))
        self.objective = objective
        self.over_peers = over_peers
        self._alike = len(peers) if alike is None else alike
        self.progress = 0.0
        self._labels = objective.labels_only()
        self._pairs: dict[tuple[str, str], Objective] = {}
        made = self._planned(dict(zip(self.names, peers, strict=True)), example, samples)
        parts = {name: self._part(name, peer, made) for name, peer in zip(self.names, peers, strict=True)}
        self.parts = nn.ModuleDict(parts)
        object.__setattr__(self, "_parts", parts)  # as they are, whatever a loop wraps around them

    def _planned(
        self, peers: dict[str, nn.Module], example: Batch | None, samples: int | None
    ) -> dict[str, nn.Module]:
        """An objective for each ordered pair of peers; gives adapters and matchers by key."""
        made: dict[str, nn.Module] = {}
        for ours, student in peers.items():
            for theirs, teacher in peers.items():
                if ours == theirs:
                    continue
                pair = self.objective.terms_only()
                if example is not None:
                    layers = partial(record, teacher, example.input(theirs))
                    modules = pair.build(student, example.input(ours), layers, samples)
                    prefix = f"{ours}<{theirs}:"
                    made |= {prefix + key: module for key, module in modules.items()}
                    pair.plan = [
                        replace(
                            planned,
                            key=prefix + planned.key if planned.key in modules else planned.key,
                            matcher=planned.matcher and prefix + planned.matcher,
                        )
                        for planned in pair.plan
                    ]
                self._pairs[ours, theirs] = pair
        return made

    def _part(self, name: str, peer: nn.Module, made: dict[str, nn.Module]) -> StudentPart:
        taught = [pair for (ours, _), pair in self._pairs.items() if ours == name]
        teaching = [pair for (_, theirs), pair in self._pairs.items() if theirs == name]
        paths = [path for pair in taught for path in pair.student_paths]
        paths += [path for pair in teaching for path in pair.teacher_paths]
        plan = [planned for pair in taught for planned in pair.plan]
        sources = {planned.key: planned.student for planned in plan if planned.key in made}
        return StudentPart(
            Tapped(peer, tuple(dict.fromkeys(paths)), role=name),
            nn.ModuleDict({key: made[key] for key in sources}),
            sources,
            nn.ModuleDict({planned.matcher: made[planned.matcher] for planned in plan if planned.matcher}),
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The bare peers by name."""
        parts: dict[str, StudentPart] = self.__dict__["_parts"]
        return {name: part.tapped.model for name, part in parts.items()}

    @property
    def student(self) -> nn.Module:
        """The first peer."""
        return self.networks[self.names[0]]

    @property
    def watched(self) -> dict[str, bool]:
        """All peers are evaluated after each epoch; those of the student's architecture may be kept."""
        return {name: number < self._alike for number, name in enumerate(self.names)}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage, one phase: all peers take their step together."""
        return (Stage("train"),)

    def enter(self, stage: str) -> None:
        """Nothing changes with the one stage."""

    def stepped(self, steps: int) -> None:
        """Nothing follows the optimiser's steps."""

    def trainable(self, stage: str = "train", phase: str = "train") -> dict[str, nn.Module]:
        """All peers, each with an optimiser of its own."""
        return dict(self.parts.items())

    def counts(self, batch: Batch, phase: str = "train") -> dict[str, float]:
        """What each part of the loss is divided by for this batch; no forward pass."""
        counts = self.objective.counts(batch)
        return {f"{peer}.{name}": count for peer in self.names for name, count in counts.items()}

    def control(self, student: nn.Module) -> Offline:
        """The same training of one ``student`` alone: labels only, at weight 1."""
        return Offline(student, None, self.objective.without_terms())

    def forward(self, batch: Batch, phase: str = "train") -> Step:
        """One pass of every peer.

        Args:
            batch: What they see; a peer may have a view of its own under its name.
            phase: ``train``.

        Returns:
            The parts of the loss by ``peer.part``, and the first peer's answer.
        """
        answers: dict[str, Signals] = {name: self.parts[name](batch.input(name)) for name in self.names}
        lessons = {name: _detached(answer) for name, answer in answers.items()}
        parts: dict[str, Share] = {}
        for name, answer in answers.items():
            mine = self._labels.shares(answer, None, batch, self.progress)
            mine |= self._lessons(name, answer, lessons, batch)
            parts |= {
                f"{name}.{part}": share for part, share in self._reaching_all(name, mine, answer).items()
            }
        return Step(parts, answers[self.names[0]])

    def _lessons(
        self, name: str, answer: Signals, lessons: dict[str, Signals], batch: Batch
    ) -> dict[str, Share]:
        """Every term, averaged (or added up) over the other peers."""
        part: StudentPart = self.__dict__["_parts"][name]
        matchers = dict(part.matchers.items())
        totals: dict[str, list[Share]] = {}
        for other, lesson in lessons.items():
            if other != name:
                shares = self._pairs[name, other].shares(answer, lesson, batch, self.progress, matchers)
                for term, share in shares.items():
                    totals.setdefault(term, []).append(share)
        scale = 1.0 if self.over_peers == "sum" else 1.0 / (len(self.names) - 1)
        return {
            term: Share(sum((each.total for each in shares[1:]), shares[0].total) * scale, *_rest(shares[0]))
            for term, shares in totals.items()
        }

    def _reaching_all(self, name: str, parts: dict[str, Share], answer: Signals) -> dict[str, Share]:
        """Give adapters that no part looks at a gradient of 0: DDP waits for every parameter."""
        idle: list[Tensor] = []
        for (ours, _), pair in self._pairs.items():
            if ours == name:
                idle += [
                    answer.taps[each.key]
                    for each in pair.plan
                    if each.term not in parts and each.key != each.student
                ]
                part: StudentPart = self.__dict__["_parts"][name]
                unused = [each.matcher for each in pair.plan if each.matcher and each.term not in parts]
                idle += [parameter for key in unused for parameter in part.matchers[key].parameters()]
        return tied(parts, idle if "labels" in parts else [*idle, answer.output])


def _rest(share: Share) -> tuple[float, float]:
    return share.count, share.weight


def _detached(answer: Signals) -> Signals:
    taps = {path: tensor.detach() for path, tensor in answer.taps.items()}
    return Signals(answer.output.detach(), taps)
