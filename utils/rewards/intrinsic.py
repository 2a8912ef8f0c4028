"""The intrinsic reward: a reward for each token from a teacher's logits (inverse soft Bellman operator).

Token process: the state s_h is the prompt and the tokens so far, the action a_h is the next token. A model
trained on next tokens by maximum likelihood solves the offline inverse-RL problem whose soft optimal policy
is pi_hat = softmax(f / alpha), so that its logits f are a soft Q (EndoRM, arXiv 2506.23235):

    Q(s_h, a_h) = f(s_h, a_h)                        logit of the chosen token
    V(s_h)      = alpha * logsumexp(f(s_h, .) / alpha)
    alpha * log pi_hat(a_h | s_h) = Q(s_h, a_h) - V(s_h)

Forms (`FORMS`), for the h-th of the H kept tokens of a completion:

    bellman           r_h = Q(s_h, a_h) - gamma * V(s_{h+1})
                          = alpha * log pi_hat(a_h | s_h) + V(s_h) - gamma * V(s_{h+1})
    logprob           r_h = Q(s_h, a_h) - V(s_h) = alpha * log pi_hat(a_h | s_h)
    bellman_centered  bellman, with V(s_1) subtracted at the first token

Terminal rule: V after the last kept token is 0, so that the reward of that token is its raw Q.
Truncation rule: the same for a completion cut at the length limit as for a finished one; otherwise the two
would differ by one V, whose size is set by arbitrary logit offsets. A completion that never ended gets
`missing_eos`, a penalty of a chosen size, instead.

Discounting: the shaping term gamma * V(s_{h+1}) - V(s_h) must have the gamma of the returns (Ng et al. 1999);
pass the trainer's. With Q - V(s_{h+1}) under gamma < 1 every token would carry -(1 - gamma) * V(s_{h+1}), a
hidden price per token. The discounted sums then telescope:

    sum_h gamma^(h-1) r_h = sum_h gamma^(h-1) alpha * log pi_hat(a_h | s_h) + V(s_1)      (bellman)

and without V(s_1) for bellman_centered and logprob.

What the teacher's distribution identifies: only alpha * log pi_hat, and with it every sum up to V(s_1), which
is the same for all completions of a prompt and cancels in any per-prompt baseline. Adding c(s) to all logits
of a state changes no probability, yet moves the bellman reward of a token by c(s_h) - gamma * c(s_{h+1}): how
the bellman forms split a sum between tokens is the teacher's habit, not its knowledge.
alpha = 1 is the teacher as trained; any other value is a change of its temperature, not a scale of the reward
(scale it with `weights.intrinsic`).
"""

import torch
from torch import Tensor

FORMS = ("bellman", "logprob", "bellman_centered")


def token_rewards(q: Tensor, v: Tensor, mask: Tensor, *, form: str, gamma: float = 1.0) -> Tensor:
    """Reward of every completion token, in the dtype of `q`, [B, C]; masked positions get 0.

    q, v   floating [B, C], Q(s_h, a_h) and V(s_h) as `utils.models.teacher.TeacherScores` holds them; what
           masked positions hold is ignored
    mask   [B, C], 1 on kept tokens, which are a row's first ones; a row may be masked entirely
    form   one of `FORMS`
    gamma  the discount of the returns, in [0, 1]; `logprob` does not use it

    Raises ValueError for another form, a gamma outside [0, 1], or a mask with a hole or left padding.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, found {form!r}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1], found {gamma}")
    mask = _right_padded(mask)
    if form == "logprob":
        return (q - v).where(mask, 0)
    value = v.where(mask, 0)
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    rewards = (q - gamma * following).where(mask, 0)
    if form == "bellman_centered":
        rewards[:, :1] -= value[:, :1]
    return rewards


def outcome_reward(q: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """alpha * log pi_hat(completion | prompt), [B]: the sum of q - v, to reward whole completions.

    In nats times alpha, at most 0 up to rounding; 0 for a row that is masked entirely. Arguments and errors
    as in `token_rewards`.
    """
    return token_rewards(q, v, mask, form="logprob").sum(1)


def missing_eos(mask: Tensor, truncated: Tensor, penalty: float) -> Tensor:
    """-penalty on the last kept token of completions cut before their end, float32 [B, C]; 0 elsewhere.

    mask       [B, C], as in `token_rewards`
    truncated  bool [B]: no end-of-sequence token was sampled
    penalty    at least 0

    A row that is masked entirely has no token to carry it and gets none. Raises ValueError for a negative
    penalty and for masks as `token_rewards` does.
    """
    if not penalty >= 0:
        raise ValueError(f"penalty must be at least 0, found {penalty}")
    mask = _right_padded(mask)
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    cut = mask & ~following & truncated.bool()[:, None]
    return torch.zeros(mask.shape, device=mask.device).masked_fill(cut, -penalty)


def _right_padded(mask: Tensor) -> Tensor:
    mask = mask.bool()
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("completions must be padded on the right")
    return mask
