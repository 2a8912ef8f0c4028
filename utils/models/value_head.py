"""The critic: a linear head on the policy's own hidden states, or on those of a model of its own.

V(s_t) is read from the final hidden state before token t, the same state that predicts the token. The head
is kept out of the policy's files: checkpoints stay plain policies, and the critic lies beside them.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from utils.frame.files import UserError, atomic_path
from utils.models.prefix.prefix_scoring import states_before
from utils.models.prefix.shared_prefix import CompletionBatch, unwrapped


class ValueHead(nn.Linear):
    """Hidden states [..., d] to values [...], in float32 whatever the model's number format.

    Weights are normal with standard deviation 1/sqrt(d + 1), the bias is 0 (Huang et al. 2024, arXiv
    2403.17031).
    """

    file = "value_head.safetensors"  # beside the policy's, in a checkpoint

    def __init__(self, width: int, seed: int):
        super().__init__(width, 1, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)
            self.bias.zero_()

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return super().forward(states.to(self.weight.dtype)).squeeze(-1)


def attach_value_head(model: nn.Module, seed: int) -> ValueHead:
    """Give the causal language model (below its PEFT wrapper) a `value_head`, which its files leave out."""
    inner = unwrapped(model)
    head = ValueHead(inner.config.get_text_config().hidden_size, seed)
    inner.value_head = head.to(inner.get_output_embeddings().weight.device)
    ignored = {f"value_head.{name}" for name, _ in head.named_parameters()}
    inner._keys_to_ignore_on_save = set(inner._keys_to_ignore_on_save or ()) | ignored
    return head


class ValueModel(nn.Module):
    """A critic that shares nothing with the policy: a causal language model, its last layer not used."""

    file = "value_model.safetensors"

    def __init__(self, model: nn.Module, seed: int):
        super().__init__()
        self.model = model
        self.head = ValueHead(unwrapped(model).config.get_text_config().hidden_size, seed)
        if not unwrapped(model).config.tie_word_embeddings:
            unwrapped(model).get_output_embeddings().requires_grad_(False)

    def forward(self, batch: CompletionBatch, shared: bool = True) -> Tensor:
        """The values before the unmasked completion tokens, float32 [N]."""
        return self.head(states_before(self.model, batch, shared))


def save_critic(critic: ValueHead | ValueModel, folder: Path) -> None:
    """Write the trained part of the critic into an existing folder."""
    trained = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in critic.named_parameters()
        if parameter.requires_grad
    }
    with atomic_path(folder / critic.file) as path:
        save_file(trained, path)


def load_critic(critic: ValueHead | ValueModel, folder: Path) -> None:
    """Read what `save_critic` wrote. Raises UserError where it is missing or is another critic's."""
    path = folder / critic.file
    if not path.is_file():
        raise UserError(f"{path}: no such file; was this checkpoint written with the same algo.value_model?")
    loaded = load_file(path)
    trained = {name: parameter for name, parameter in critic.named_parameters() if parameter.requires_grad}
    shapes = {name: value.shape for name, value in loaded.items()}
    if shapes != {name: parameter.shape for name, parameter in trained.items()}:
        raise UserError(f"{path}: holds the critic of another model; start again with --overwrite")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(loaded[name])


class TrainsCritic:
    """Trainer mixin: `self.critic`, if any, has its own learning rate and is part of every resume point."""

    critic: ValueHead | ValueModel | None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the policy's groups as in Transformers, then the critic's."""
        made = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if made or self.critic is None:
            return optimizer
        critic = [parameter for parameter in self.critic.parameters() if parameter.requires_grad]
        chosen = {id(parameter) for parameter in critic}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        rate = self.args.value_learning_rate or self.args.learning_rate
        for decay, params in (
            (self.args.weight_decay, [parameter for parameter in critic if parameter.dim() > 1]),
            (0.0, [parameter for parameter in critic if parameter.dim() <= 1]),
        ):
            optimizer.add_param_group({"params": params, "lr": rate, "weight_decay": decay})
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.save_critic(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.critic is not None:
            load_critic(self.critic, Path(checkpoint))

    def save_critic(self, folder: Path) -> None:
        """Write the critic's file into a checkpoint's folder, where there is a critic."""
        if self.critic is not None:
            save_critic(self.critic, folder)
