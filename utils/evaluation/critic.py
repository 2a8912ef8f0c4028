"""PPO's critic at evaluation: the advantages of an answer's tokens as training would have estimated them.

Rewards are those that PPO pays: the reward pipeline's, less the KL penalty and plus the entropy bonus, for
the greedy answers as one rollout. Values come from the critic that the checkpoint holds, advantages from GAE
with the stage's gamma and lambda, before whitening.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.evaluation.answers import PolicyAnswers
from utils.evaluation.token_values import Values
from utils.frame.files import shown
from utils.frame.manifest import read_manifest
from utils.frame.pipeline import origin_of
from utils.frame.stage import StageContext, no_bar
from utils.methods.ppo.losses import gae, k1
from utils.methods.ppo.settings import PpoAlgo
from utils.models.loading import device, load_policy
from utils.models.prefix.shared_prefix import CompletionBatch, unwrapped
from utils.models.teacher import TeacherScores
from utils.models.value_head import ValueHead, ValueModel
from utils.models.value_head import load_critic as read_weights
from utils.rewards.overlong import Overlong
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rewards.spec import RewardSpec, paid_weights

# Of the stage's settings, those that rewards and advantages depend on.
SETTINGS = (
    *("gamma", "lam", "lam_length", "kl_coef", "entropy_reward_coef", "adaptive_kl", "whiten_rewards"),
    *("value_model", "critic_target", "overlong_buffer"),
)


class KnownScores:
    """Stands for the teacher where what it says of a batch is known already."""

    def __init__(self, scores: TeacherScores):
        self._scores = scores

    def score(self, batch: CompletionBatch, progress: Callable[..., Iterable] = no_bar) -> TeacherScores:
        return self._scores


@dataclass(frozen=True)
class Critic:
    """A critic with the settings of the PPO stage that trained it; see `load_critic`."""

    model: ValueHead | ValueModel
    algo: PpoAlgo
    reward: str
    temperature: float
    longest: int  # completion that training sampled, in tokens

    def advantages(
        self, answers: PolicyAnswers, values: Mapping[int, Values], spec: RewardSpec
    ) -> dict[int, np.ndarray]:
        """GAE of the answers' tokens, item -> float64 [n], for the items that have ``values``.

        Args:
            values: of the answers, from policy, critic and whoever else the rewards need.
        """
        places = list(values)
        if not places:
            return {}
        completions = [answers.completions[place] for place in places]
        batch = CompletionBatch.of(
            [[0]] * len(places), [completion.token_ids for completion in completions], torch.device("cpu")
        )

        def column(name: str) -> Tensor:
            return batch.scatter(torch.from_numpy(np.concatenate([values[place][name] for place in places])))

        teacher = None
        if RewardPipeline.needs_teacher(spec, self.reward):
            teacher = KnownScores(TeacherScores(column("q"), column("v")))
        # Only the process that writes comes here, with all answers.
        pipeline = RewardPipeline(
            answers.records, spec, self.reward, teacher, gamma=self.algo.gamma, replicated=True
        )
        pipeline.overlong = Overlong.of(self.algo.overlong_buffer, self.longest)
        paid = pipeline.score_tokens(
            places,
            batch,
            [completion.text for completion in completions],
            torch.tensor([completion.truncated for completion in completions]),
            update=False,
        ).token_rewards.double()
        log_prob = column("sampled/policy")
        if self.algo.kl_coef:
            paid = paid - self.algo.kl_coef * k1(log_prob - column("sampled/reference"))
        paid = paid - self.algo.entropy_reward_coef * log_prob
        mask = batch.completion_mask.bool()
        advantages = gae(paid, column("value"), mask, gamma=self.algo.gamma, lam=self.algo.lam)
        return {place: advantages[row][mask[row]].numpy() for row, place in enumerate(places)}


def load_critic(
    ctx: StageContext,
    checkpoint: Path | str | None,
    policy: nn.Module,
    spec: RewardSpec,
    others: Collection[str],
) -> Critic | None:
    """The critic of a PPO checkpoint of this run; None for other policies.

    None as well, with a line in the log, where the rewards that it was trained on cannot be computed again.

    Args:
        policy: what the checkpoint holds.
        others: who is asked besides the policy, of "teacher" and "reference".

    Raises UserError where the critic's file is damaged or another model's.
    """
    origin = origin_of(checkpoint)
    if origin is None or origin.method.package != "ppo" or origin.stage.parent != ctx.run_dir:
        return None
    manifest = read_manifest(origin.stage)
    if manifest is None:
        return None
    config = manifest["config"]
    algo = replace(PpoAlgo(), **{name: config["algo"][name] for name in SETTINGS if name in config["algo"]})
    if algo.value_model == "siblings":  # there was no critic
        return None
    separate = algo.value_model == "separate"
    reason = _obstacle(algo, config["options"]["reward"], spec, others)
    if not (checkpoint / (ValueModel if separate else ValueHead).file).is_file():
        reason = "it was saved without its critic"
    elif separate and "reference" not in ctx.inputs:
        reason = "its critic is a change of the reference"
    if reason:
        ctx.log(f"{shown(checkpoint)}: no advantages, for {reason}")
        return None
    if separate:
        start, _ = load_policy(ctx.inputs["reference"], ctx.config.model.model, trainable=True)
        model = ValueModel(start, seed=0)
    else:
        model = ValueHead(unwrapped(policy).config.get_text_config().hidden_size, seed=0)
    read_weights(model, checkpoint)
    model = model.to(device()).eval()
    sampling = config["model"]["generation"]
    return Critic(
        model, algo, config["options"]["reward"], sampling["temperature"], sampling["max_new_tokens"]
    )


def _obstacle(algo: PpoAlgo, reward: str, spec: RewardSpec, others: Collection[str]) -> str:
    """Why the rewards of training cannot be computed again, "" where they can."""
    weights = paid_weights(spec, reward)
    if weights.intrinsic and "teacher" not in others:
        return "its rewards need the teacher"
    if algo.kl_coef and "reference" not in others:
        return "its rewards need the reference"
    if weights.intrinsic and spec.intrinsic.normaliser != "none":
        return "its intrinsic rewards were normalised over rollouts"
    if spec.adaptive.enabled:
        return "its reward weights followed the training"
    if algo.adaptive_kl:
        return "its KL coefficient followed the training"
    if algo.whiten_rewards:
        return "its rewards were scaled within rollouts"
    if algo.critic_target == "residual":
        return "its critic learned what siblings' values leave"
    if algo.lam_length is not None:
        return "its lambda followed the length"
    return ""
