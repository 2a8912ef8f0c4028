"""Divergences between the next-token distributions of a student S and a teacher T, token by token.

With p_T, p_S the softmax of the logits divided by the temperature tau, over the first `vocab_size` columns
(the tokenizer's; models pad their vocabularies differently):

    forward_kl   KL(T || S) = sum p_T (log p_T - log p_S)       covers what the teacher may say
    reverse_kl   KL(S || T) = sum p_S (log p_S - log p_T)       seeks what the teacher says most
    jsd          beta KL(T || M) + (1 - beta) KL(S || M),   M = beta p_T + (1 - beta) p_S

All are in nats, and each is multiplied by tau**2: a gradient with respect to logits divided by tau shrinks as
1 / tau, and the difference of the softened distributions once more (Hinton et al. 2015, arXiv 1503.02531).

jsd goes to 0 with beta and with 1 - beta: near 0 it is beta * KL(T || S), near 1 (1 - beta) * KL(S || T). It
does not turn into the two KLs, which are unscaled; it is -beta log beta - (1 - beta) log(1 - beta) at most.

Exact divergences are those of TRL's kernel, which never holds [N, V] logits whole. With a teacher's k
likeliest tokens, each of them is an outcome and all others together are one more, the tail: never more than
the exact divergence, never less with a larger k, and equal to it where k covers the vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from utils.models.prefix.prefix_scoring import in_pieces, wide_logits

Kind = Literal["forward_kl", "reverse_kl", "jsd"]


@dataclass(frozen=True)
class Measure:
    """Which divergence, at which temperature; ``beta`` is the teacher's weight in jsd's mixture."""

    kind: Kind
    beta: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        if self.kind == "jsd" and not 0 < self.beta < 1:
            raise ValueError(f"jsd needs beta between 0 and 1, both excluded, found {self.beta}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, found {self.temperature}")

    @property
    def trl_beta(self) -> float:
        """The divergence as TRL names it: 0 forward KL, 1 reverse KL, in between jsd."""
        return {"forward_kl": 0.0, "reverse_kl": 1.0}.get(self.kind, self.beta)


@dataclass(frozen=True)
class TopK:
    """The teacher's k likeliest tokens in each of N states, at the divergence's temperature.

    log_probs  [N, k], of the whole distribution, not of the k alone
    indices    int64 [N, k]
    tail       [N], log of the probability of all others; -inf where k covers the vocabulary
    """

    log_probs: Tensor
    indices: Tensor
    tail: Tensor


def exact_divergence(
    student_states: Tensor,
    student_head: nn.Module,
    teacher_states: Tensor,
    teacher_head: nn.Module,
    measure: Measure,
    vocab_size: int,
) -> Tensor:
    """The divergence before each of N tokens, times temperature², float32 [N]; the student gets gradients.

    States are those before the tokens, [N, H_S] and [N, H_T]; heads are linear layers.
    """
    # Here, because evaluation needs `log_divergence` alone, and TRL loads for seconds.
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence, _ = ChunkedDivergenceFunction.apply(
        student_states,
        *_cut(student_head, vocab_size),
        teacher_states,
        *_cut(teacher_head, vocab_size),
        measure.trl_beta,
        measure.temperature,
    )
    return divergence * measure.temperature**2


def _cut(head: nn.Module, vocab_size: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the tokenizer's columns."""
    bias = getattr(head, "bias", None)
    return head.weight[:vocab_size], None if bias is None else bias[:vocab_size]


@torch.no_grad()
def teacher_top_k(states: Tensor, head: nn.Module, k: int, temperature: float, vocab_size: int) -> TopK:
    """The teacher's ``k`` likeliest tokens (at most ``vocab_size``) from the states before N tokens."""
    k = min(k, vocab_size)

    def piece(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = wide_logits(head, states, vocab_size) / temperature
        chosen, indices = logits.topk(k, dim=-1)
        log_z = logits.logsumexp(-1)
        return chosen - log_z[:, None], indices, _rest(logits, indices) - log_z

    return TopK(*in_pieces(piece, head, states))


def top_k_divergence(
    states: Tensor, head: nn.Module, teacher: TopK, measure: Measure, vocab_size: int
) -> Tensor:
    """The divergence over the teacher's k tokens and the tail, times temperature², [N]; float32 or better."""
    covers = teacher.indices.shape[-1] >= vocab_size

    def piece(states: Tensor, log_probs: Tensor, indices: Tensor, tail: Tensor) -> tuple[Tensor]:
        logits = wide_logits(head, states, vocab_size) / measure.temperature
        log_z = logits.logsumexp(-1)
        own = logits.gather(-1, indices) - log_z[:, None]
        if not covers:
            own = torch.cat([own, (_rest(logits, indices) - log_z)[:, None]], -1)
            log_probs = torch.cat([log_probs, tail[:, None]], -1)
        return (log_divergence(log_probs, own, measure),)

    found = in_pieces(piece, head, states, teacher.log_probs, teacher.indices, teacher.tail)
    return found[0] * measure.temperature**2


def log_divergence(teacher: Tensor, student: Tensor, measure: Measure) -> Tensor:
    """The divergence of distributions given as log-probabilities, [..., outcomes] -> [...]."""
    if measure.kind == "forward_kl":
        return (teacher.exp() * (teacher - student)).sum(-1)
    if measure.kind == "reverse_kl":
        return (student.exp() * (student - teacher)).sum(-1)
    beta = measure.beta
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    from_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)
    from_student = (student.exp() * (student - mixture)).sum(-1)
    return beta * from_teacher + (1 - beta) * from_student


@torch.no_grad()
def top_one_and_entropy(states: Tensor, head: nn.Module, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The likeliest token, int64 [N], and the entropy in nats, [N], at temperature 1."""

    def piece(states: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = wide_logits(head, states, vocab_size).log_softmax(-1)
        return log_probs.argmax(-1), -(log_probs.exp() * log_probs).sum(-1)

    return in_pieces(piece, head, states)


def _rest(logits: Tensor, indices: Tensor) -> Tensor:
    """Log of the sum of all but the chosen columns; summed itself, since 1 - sum(chosen) would cancel."""
    return logits.scatter(-1, indices, -math.inf).logsumexp(-1)
