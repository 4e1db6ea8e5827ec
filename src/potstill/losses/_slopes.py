"""Divergences with their derivatives by the student's logits, written out, for a loss made in chunks.

``SLOPES[name](log_student, log_teacher, share)`` gives the divergence of each row ``(N,)``, its derivative
``(N, C)`` by the logits whose softmax the student is, and the student's probabilities. Arguments are
overwritten. The formulas are those of the functions of that name, which the tests hold them to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from potstill.losses._softmax import log_mixture

__all__ = ["SLOPES", "bucketed", "drawn"]

Found = tuple[Tensor, Tensor, Tensor]
Slope = Callable[[Tensor, Tensor, float], Found]


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner product of each row, without a tensor of products."""
    return torch.bmm(first.unsqueeze(1), second.unsqueeze(2)).flatten()


def _through_softmax(pulls: Tensor, student: Tensor) -> Tensor:
    """The derivative by logits, from ``pulls`` = p_s dD/dp_s, in its place."""
    return pulls.addcmul_(student, pulls.sum(dim=-1, keepdim=True), value=-1)


def _kl(log_student: Tensor, log_teacher: Tensor, share: float) -> Found:
    teacher = log_teacher.exp()
    values = _dot(teacher, log_teacher.sub_(log_student))
    student = log_student.exp_()
    return values, _through_softmax(teacher.neg_(), student), student


def _reverse_kl(log_student: Tensor, log_teacher: Tensor, share: float) -> Found:
    ratio = torch.sub(log_student, log_teacher, out=log_teacher)
    student = log_student.exp_()
    pulls = ratio.mul_(student)
    return pulls.sum(dim=-1), _through_softmax(pulls, student), student


def _skew_kl(log_student: Tensor, log_teacher: Tensor, share: float) -> Found:
    mixture = log_mixture(log_teacher, log_student, share)
    ratio = log_teacher - mixture
    values = _dot(log_teacher.exp_(), ratio)
    student = log_student.exp()
    pulls = ratio.add_(log_student).exp_().mul_(share - 1)  # p_s p_t / m: finite where p_s is 0
    return values, _through_softmax(pulls, student), student


def _skew_reverse_kl(log_student: Tensor, log_teacher: Tensor, share: float) -> Found:
    mixture = log_mixture(log_student, log_teacher, share)
    ratio = log_student - mixture
    student = log_student.exp_()
    values = _dot(student, ratio)
    pulls = ratio.sub_(ratio.exp(), alpha=share).mul_(student)
    return values, _through_softmax(pulls, student), student


def _generalized_js(log_student: Tensor, log_teacher: Tensor, share: float) -> Found:
    mixture = log_mixture(log_teacher, log_student, share)
    ratio = log_teacher - mixture
    values = _dot(log_teacher.exp_(), ratio).mul_(share)
    pulls = torch.sub(log_student, mixture, out=mixture)
    student = log_student.exp_()
    pulls = pulls.mul_(student).mul_(1 - share)
    return values + pulls.sum(dim=-1), _through_softmax(pulls, student), student


def _total_variation(log_student: Tensor, log_teacher: Tensor, share: float) -> Found:
    student = log_student.exp_()
    gap = torch.sub(student, log_teacher.exp_(), out=log_teacher)
    values = torch.linalg.vector_norm(gap, ord=1, dim=-1).div_(2)
    return values, _through_softmax(gap.sign_().mul_(student).div_(2), student), student


SLOPES: dict[str, Slope] = {
    "kl": _kl,
    "reverse_kl": _reverse_kl,
    "skew_kl": _skew_kl,
    "skew_reverse_kl": _skew_reverse_kl,
    "generalized_js": _generalized_js,
    "total_variation": _total_variation,
}


def bucketed(
    slope: Slope, log_student: Tensor, ids: Tensor, log_known: Tensor, log_tail: Tensor, share: float
) -> Found:
    """A divergence of K known words ``(N, K)`` and of one bucket ``(N,)`` for all others.

    The student's bucket is summed from its words, not taken as what is missing to 1, which would be noise
    where the student is sure.
    """
    tiny = torch.finfo(log_student.dtype).tiny
    log_ours = log_student.gather(1, ids)
    student = log_student.exp_()
    rest = student.scatter(1, ids, 0.0)
    mass = rest.sum(dim=-1, keepdim=True).clamp_(min=tiny)
    theirs = log_tail.clamp(min=torch.log(mass.new_tensor(tiny))).unsqueeze(1)
    values, slopes, _ = slope(
        torch.cat([log_ours, mass.log()], dim=1), torch.cat([log_known, theirs], dim=1), share
    )
    derivative = rest.mul_(slopes[:, -1:] / mass).scatter_(1, ids, slopes[:, :-1])
    return values, derivative, student


def drawn(log_student: Tensor, ids: Tensor, information: Tensor) -> Found:
    """Forward KL from words drawn from the teacher ``(N, K)``, right in the mean over the draws.

    Its value may be below 0 for one token; its derivative is that of the cross-entropy with the draws.
    """
    values = information.to(log_student.dtype) - log_student.gather(1, ids).mean(dim=1)
    student = log_student.exp_()
    share = student.new_full((), -1 / ids.shape[1]).expand(ids.shape)
    return values, student.scatter_add(1, ids, share), student
