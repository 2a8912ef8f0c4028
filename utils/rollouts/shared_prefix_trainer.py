"""`SharedPrefix`: TRL's GRPO and RLOO trainers, with every prompt encoded once per group.

    class SharedPrefixGRPOTrainer(SharedPrefix, GRPOTrainer): ...

The mixin replaces three steps of the trainer and leaves its losses, advantages, logs and checkpoints alone:
scoring (policy, old policy and reference log-probabilities), sampling without vLLM, and the shuffling of a
rollout into micro-batches, which then keep the completions of one prompt together. Losses and gradients equal
the stock trainer's to float tolerance. Where sharing cannot apply it runs the stock step and says so once.

All randomness of a rollout comes from `args.seed` and the optimizer step, not from the global generators, and
checkpoints must fall between rollouts, so a run that was killed at any step resumes to identical weights.

Several processes share a rollout as one would have it: the noise of sampling is drawn for the whole, and so
is the order of its groups; each process takes its rows of both (utils/rollouts/batches.py).
"""

import logging

import torch
from torch import Tensor, nn

from utils.frame.files import UserError, derive_seed
from utils.frame.processes import gather_items, num_processes
from utils.models.prefix.prefix_sampling import sample_completions, sampling_noise
from utils.models.prefix.prefix_scoring import accept_shared_prefix
from utils.models.prefix.shared_prefix import (
    CompletionBatch,
    drops_cache,
    evaluating,
    group_prompts,
    obstacle,
)
from utils.models.sampling import padding_ids
from utils.models.sampling_memory import Room
from utils.models.trl_version import check_trl_version
from utils.models.vllm.sampler import without_padding
from utils.models.vllm.weights import send_policy
from utils.rollouts.batches import updates_per_rollout
from utils.training.cost import CountsCost
from utils.training.memory import KeepsAdapterFormat

try:
    from trl import GRPOTrainer
    from trl.models import unwrap_model_for_generation
    from trl.trainer.utils import RepeatSampler, pad, split_tensor_dict
except ImportError:
    check_trl_version()  # names move between releases: say which one is needed
    raise

logger = logging.getLogger(__name__)


def check_save_steps(args) -> None:
    """Raise UserError where a checkpoint could fall inside a rollout, whose samples it would not hold."""
    every = updates_per_rollout(args)
    if args.save_strategy == "steps" and (args.save_steps < 1 or args.save_steps % every):
        raise UserError(
            f"save_steps is {args.save_steps:g} but a rollout lasts {every} optimizer steps "
            f"(steps_per_generation {args.steps_per_generation} x num_iterations {args.num_iterations}, "
            f"gradient_accumulation_steps {args.gradient_accumulation_steps}): "
            f"set save_steps to a multiple of {every}, so that a run can resume between rollouts"
        )


def check_prompts_suffice(args, prompts: int) -> None:
    """Raise UserError where the data set has fewer prompts than a rollout: nothing would ever be trained."""
    needed = args.generation_batch_size // args.num_generations
    if prompts < needed:
        raise UserError(
            f"a rollout of {args.generation_batch_size} completions, num_generations {args.num_generations} "
            f"each, takes {needed} prompts and the training set has {prompts}: make rollouts smaller, "
            "or raise num_generations"
        )


def refuse_sharding(trainer, method: str) -> None:
    """Raise UserError where the model is spread over processes and the method needs all of it in each."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UserError(
            f"{method} runs in one process or under DDP: use configs/accelerate/ddp.yaml, and "
            "model.load_in_4bit or training.max_micro_batch where memory is short"
        )


class EpochSampler(RepeatSampler):
    """TRL's RepeatSampler, in the same order, but able to start at any epoch (for resuming)."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of `epoch`, counted from 0."""
        self.epoch = epoch

    def __iter__(self):
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


class SharedPrefix(KeepsAdapterFormat, CountsCost):
    """Mixin for TRL's GRPOTrainer and RLOOTrainer; put it before the trainer among the base classes.

    Takes the trainer's arguments. Raises UserError on another TRL than 1.16.x, and where `save_steps` is no
    multiple of `updates_per_rollout(args)`. `per_device_train_batch_size` should be a multiple of
    `num_generations`: otherwise groups are cut between micro-batches and share less.

    Sampling runs in eval mode (no dropout). Where dropout is active in training, a prompt has one dropout
    mask per group instead of one per completion. `room` divides rollouts that memory has no room for.

    Ids beyond the tokenizer, for which Qwen2.5 has logits, are never sampled. Scores remain TRL's, over all
    columns: log pi(token) = log q(token) + log Z, where q is what is sampled from and Z the mass of the
    tokenizer's ids. Z is 1 to rounding in a trained model, and below it in a random one; ratios, KL
    penalties and the policy gradient then hold Z as well, and advantages that do not average to 0 move it.
    """

    room: Room | None = None

    def __init__(self, *args, **kwargs):
        check_trl_version()
        super().__init__(*args, **kwargs)
        if self.use_vllm:
            send_policy(self.vllm_generation)
        self._suppress_padding()
        check_save_steps(self.args)
        if hasattr(self.train_dataset, "__len__"):
            check_prompts_suffice(self.args, len(self.train_dataset))
        self._said: set[str] = set()
        self._draws: dict[str, tuple] = {}  # purpose -> (optimizer step and mode, draws made in it so far)
        self._obstacles: dict[int, str | None] = {}
        for model in (self.model, self.ref_model):
            if model is not None:
                inner = self.accelerator.unwrap_model(model)
                if obstacle(inner) is None:
                    accept_shared_prefix(inner)

    # ------------------------------------------------------------------------------------------- fallback

    def _stock(self, step: str, reason: str | None) -> bool:
        """Return whether `step` must run as in TRL, and log why, once per step and reason."""
        if reason and (step, reason) not in self._said:
            self._said.add((step, reason))
            logger.warning("%s without shared prefixes: %s", step, reason)
        return reason is not None

    def _model_obstacle(self, model: nn.Module) -> str | None:
        """Return why this model cannot share prefixes, or None."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            # Ranks would gather the shards a different number of times and wait for each other for ever.
            return "parameters are sharded over processes"
        if id(model) not in self._obstacles:
            self._obstacles[id(model)] = obstacle(self.accelerator.unwrap_model(model))
        return self._obstacles[id(model)]

    def _scoring_obstacle(self, model: nn.Module, aux_loss: bool, inputs: dict) -> str | None:
        if aux_loss:
            return "the router's auxiliary loss counts every full sequence"
        given = sorted(name for name, value in inputs.items() if value is not None)
        if given:
            return f"multimodal inputs ({', '.join(given)})"
        if torch.is_grad_enabled() and drops_cache(self.accelerator.unwrap_model(model)):
            return "gradient checkpointing drops the cache"
        return self._model_obstacle(model)

    def _sampling_obstacle(self, images, multimodal_fields: dict) -> str | None:
        if self.use_vllm or self.use_transformers_continuous_batching:
            return "vLLM or continuous batching samples"
        if images is not None or multimodal_fields:
            return "multimodal inputs"
        args = self.args
        plain = {
            "min_p": None,
            "repetition_penalty": 1.0,
            "generation_kwargs": None,
            "cache_implementation": None,
        }
        changed = [name for name, value in plain.items() if (getattr(args, name) or value) != value]
        if changed:
            return f"only generate() knows {', '.join(changed)}"
        return self._model_obstacle(self.model)

    # -------------------------------------------------------------------------------------------- scoring

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **multimodal,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the completions' log-probabilities and entropies, float32 [B, C], and no auxiliary loss."""
        if self._stock("scoring", self._scoring_obstacle(model, compute_aux_loss, multimodal)):
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size=batch_size,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **multimodal,
            )
        log_probs, entropies = [], []
        rows = batch_size or len(input_ids)
        for ids, mask in zip(input_ids.split(rows), attention_mask.split(rows), strict=True):
            prompt = (slice(None), slice(None, -logits_to_keep))
            completion = (slice(None), slice(-logits_to_keep, None))
            # TRL leaves the position ids to the model, which counts the padding too.
            batch = CompletionBatch(ids[prompt], mask[prompt], ids[completion], mask[completion], "column")
            with self.accelerator.autocast():
                scores = model(shared_prefix=batch, temperature=self.temperature, entropy=compute_entropy)
            log_probs.append(batch.scatter(scores.log_prob))
            if compute_entropy:
                entropies.append(batch.scatter(scores.entropy))
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    # ------------------------------------------------------------------------------------------- sampling

    def _rollout_generator(self, purpose: str) -> torch.Generator:
        """Return a CPU generator seeded by run, purpose, optimizer step and draw in it, in every process."""
        now = (self.state.global_step, "train" if self.model.training else "eval")
        last, draws = self._draws.get(purpose, (now, 0))
        draw = draws if last == now else 0
        self._draws[purpose] = (now, draw + 1)
        # The 0 stands for the process, which a rollout does not depend on: recorded runs were drawn with it.
        seed = derive_seed(self.args.seed, purpose, *now, draw, 0)
        return torch.Generator().manual_seed(seed)

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):
        """Sample one completion per prompt (list of token lists), as the stock method returns them."""
        with self.cost.phase("sampling"):
            sampled = self._sample_turn(prompt_ids, images, multimodal_fields, *args, **kwargs)
        if self.model.training:
            completions = sampled[0] if isinstance(self, GRPOTrainer) else sampled
            self.cost.sampled(*self._over_processes(len(completions), sum(map(len, completions))))
        return sampled

    def _total(self, numbers: Tensor) -> Tensor:
        """The sum over processes."""
        return self.accelerator.reduce(numbers, reduction="sum")

    def _over_processes(self, *counts: int) -> list[int]:
        """The sums of counts over all processes."""
        return self._total(torch.tensor(counts, device=self.accelerator.device)).tolist()

    def _suppress_padding(self) -> None:
        """Keep the samplers of TRL and vLLM from ids beyond the tokenizer."""
        padding = padding_ids(self.accelerator.unwrap_model(self.model), len(self._tokenizer))
        if self.use_vllm:
            vllm = self.vllm_generation
            vllm.generation_kwargs = vllm.generation_kwargs | without_padding(padding)
        elif padding:
            given = self.generation_config.suppress_tokens or []
            self.generation_config.suppress_tokens = [*given, *padding]

    def _sample_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):
        nothing = ([], None) if isinstance(self, GRPOTrainer) else []
        if self._stock("sampling", self._sampling_obstacle(images, multimodal_fields)):
            # TRL needs a prompt, vLLM may need all processes: one without prompts takes part all the same.
            asked = prompt_ids or [[self._tokenizer.eos_token_id]]
            sampled = super()._generate_single_turn(asked, images, multimodal_fields, *args, **kwargs)
            return sampled if prompt_ids else nothing
        noise = self._sampling_noise(len(prompt_ids))
        if not prompt_ids:
            return nothing
        rows = [torch.tensor(ids) for ids in prompt_ids]
        inputs = {
            "ids": pad(rows, padding_value=self._tokenizer.pad_token_id, padding_side="left"),
            "mask": pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side="left"),
        }
        inputs = {name: value.to(self.accelerator.device) for name, value in inputs.items()}
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self.accelerator.autocast(),
        ):

            def sampled(part: slice) -> list[list[int]]:
                return sample_completions(
                    model,
                    inputs["ids"][part],
                    inputs["mask"][part],
                    max_new_tokens=self.max_completion_length,
                    eos_token_ids=self.eos_token_ids,
                    pad_token_id=self._tokenizer.pad_token_id,
                    temperature=self.temperature,
                    top_p=self.top_p,
                    top_k=self.top_k or 0,
                    noise=noise[part],
                    vocab_size=len(self._tokenizer),
                ).token_lists()

            with evaluating(model):
                parts = self.room.run(len(rows), sampled) if self.room else [sampled(slice(None))]
        token_lists = [tokens for part in parts for tokens in part]
        return (token_lists, None) if isinstance(self, GRPOTrainer) else token_lists

    def _sampling_noise(self, rows: int) -> Tensor:
        """This process's rows, float64 [rows, max_completion_length], of the noise of the whole rollout."""
        counts = gather_items([rows])
        first = sum(counts[: self.accelerator.process_index])
        generator = self._rollout_generator("sampling")
        return sampling_noise(sum(counts), self.max_completion_length, generator)[first : first + rows]

    # -------------------------------------------------------------------------------------- micro-batches

    def _prepare_inputs(self, generation_batch):
        """Return the next micro-batch, sampling and shuffling a new rollout when the last one is used up.

        As the stock method, except that whole groups are shuffled instead of rows.
        """
        if not self.model.training or "image" in generation_batch[0] or "images" in generation_batch[0]:
            return super()._prepare_inputs(generation_batch)
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            with self.cost.phase("scoring"):
                rollout = self._next_rollout(generation_batch)
            prompts = (self._whole(name, rollout[name]) for name in ("prompt_ids", "prompt_mask"))
            order = self._own_rows(self._shuffled_groups(*prompts))
            rollout = {name: self._whole(name, value, order) for name, value in rollout.items()}
            self._buffered_inputs = split_tensor_dict(rollout, steps)
        return self._buffered_inputs[self._step % steps]

    def _whole(self, name: str, values: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The given rows of a rollout's tensor of all processes, one after the other.

        Columns are padded with zeros to the widest, on the left where they are a prompt's.
        """
        if not values.ndim:
            return values
        if values.ndim > 1 and num_processes() > 1:
            left = name in ("prompt_ids", "prompt_mask")
            values = self.accelerator.pad_across_processes(values, dim=1, pad_first=left)
        return self._gathered(values)[rows]

    def _gathered(self, values: Tensor) -> Tensor:
        return self.accelerator.gather(values.contiguous()) if num_processes() > 1 else values

    def _own_rows(self, order: Tensor) -> Tensor:
        """What this process trains on of a rollout's rows in their order, in its rounds."""
        size = self.args.per_device_train_batch_size
        rounds = order.view(-1, self.accelerator.num_processes, size)
        return rounds[:, self.accelerator.process_index].reshape(-1)

    def _next_rollout(self, generation_batch: list[dict]) -> dict[str, Tensor]:
        """The rollout on the given rows of the data set, several of one prompt in a row."""
        return self._generate_and_score_completions(generation_batch)

    def _compute_loss(self, model, inputs):
        self._count_trained(inputs)
        return super()._compute_loss(model, inputs)

    def _count_trained(self, inputs: dict[str, Tensor]) -> None:
        """Count the completion tokens of a micro-batch that goes through a gradient."""
        if self.model.training:
            self.cost.trained(*self._over_processes(int(inputs["completion_mask"].sum())))

    def _shuffled_groups(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """Return the rows, int64 [B], with the groups in random order and each group's rows together."""
        group = torch.tensor(group_prompts(prompt_ids, prompt_mask).group)
        place = torch.randperm(int(group.max()) + 1, generator=self._rollout_generator("shuffle"))
        return torch.argsort(place[group], stable=True).to(prompt_ids.device)

    def _get_train_sampler(self, dataset=None):
        """Return TRL's sampler in a form that resumes in any epoch."""
        stock = super()._get_train_sampler(dataset)
        if type(stock) is not RepeatSampler:
            return stock
        return EpochSampler(
            data_source=stock.data_source,
            mini_repeat_count=stock.mini_repeat_count,
            batch_size=stock.batch_size,
            repeat_count=stock.repeat_count,
            shuffle=stock.shuffle,
            seed=stock.seed,
        )
