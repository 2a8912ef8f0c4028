"""vLLM as the sampler, driven by TRL (``trl.generation``): which stages ask it, and how.

Trainers hand TRL its own arguments (``vllm_arguments``), and TRL starts vLLM, sends it the weights (a LoRA
adapter merged into its base) and samples. Where a stage only answers (04, 10), ``vllm_sampler`` does the same
through TRL's ``VLLMGeneration`` and ``VLLMClient``. Where vLLM is asked for and not installed, the project's
own sampler does the work, and the stage says so.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.import_utils import is_vllm_available

from utils.frame.files import UserError
from utils.frame.processes import is_main_process, num_processes, wait_for_everyone
from utils.frame.stage import StageContext
from utils.models.sampling import Completer, Completion, as_completion, eos_token_ids, padding_ids
from utils.models.settings import ModelConfig, VllmSection
from utils.models.vllm.weights import send_policy

CORRECTION = "importance_sampling_"  # what the settings of the importance correction begin with
SERVER_FLAGS = (
    """VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}' """
    "--logprobs-mode processed_logprobs"
)


def without_padding(padding: Sequence[int]) -> dict[str, dict[int, float]]:
    """vLLM's sampling parameters that keep it from the ids beyond the tokenizer.

    A bias of -100 on their logits, the most that its server takes. The alternative, ``allowed_token_ids``,
    would list the whole tokenizer, and vLLM's model runner V2 takes 1,024 ids of either kind.
    """
    return {"logit_bias": dict.fromkeys(padding, -100.0)} if padding else {}


def vllm_version() -> str:
    """The installed vLLM's."""
    return importlib.metadata.version("vllm")


def uses_vllm(section: VllmSection) -> bool:
    """Whether vLLM samples: where it is asked for and installed."""
    return section.use_vllm and is_vllm_available()


def announce_sampler(ctx: StageContext) -> None:
    """Say and note in runtime.json who samples, where vLLM is asked for."""
    section = ctx.config.model.vllm
    if not section.use_vllm:
        return
    if uses_vllm(section):
        sampler = f"vLLM {vllm_version()}, {section.mode}"
        ctx.log(f"sampling with {sampler}")
    else:
        sampler = "built-in: vLLM is not installed"
        ctx.log(
            "WARNING: vllm.use_vllm is true and vLLM is not installed: the built-in sampler samples instead. "
            "Install vLLM as docs/vllm.md says, or set vllm.use_vllm: false"
        )
    ctx.runtime["sampler"] = sampler


def vllm_arguments(ctx: StageContext, correction: bool, equal_shares: bool = True) -> dict[str, Any]:
    """What a trainer's TRL config gets for sampling with vLLM; {} where it samples itself. Says which.

    Args:
        correction: whether that config has the settings of the importance correction.
        equal_shares: whether every process asks for as many completions as any other.

    Raises UserError where these settings cannot work, or the server is not up or lacks what TRL needs.
    """
    config: ModelConfig = ctx.config.model
    section = config.vllm
    announce_sampler(ctx)
    if not uses_vllm(section):
        return {}
    _check_number_format(config)
    if num_processes() % section.tensor_parallel_size:
        raise UserError(
            f"vllm.tensor_parallel_size {section.tensor_parallel_size} does not divide the "
            f"{num_processes()} processes that train: choose another, or start as many with --num_processes"
        )
    if (
        not equal_shares
        and num_processes() > 1
        and (section.mode == "server" or section.tensor_parallel_size > 1)
    ):
        raise UserError(
            "algo.on_policy_fraction between 0 and 1, or an algo.group_filter, gives the processes different "
            "numbers of completions to ask for, which TRL cannot collect: set it to 1, or none, or use "
            "vllm.mode colocate with vllm.tensor_parallel_size 1, or one process"
        )
    length = _model_length(section, config.model.max_prompt_length, config.generation.max_new_tokens)
    if section.mode == "server" and is_main_process():
        _check_server(section, correction and section.importance_sampling_correction)
    settings = dataclasses.asdict(section) | {"max_model_length": length}
    del settings["use_vllm"]
    return {"use_vllm": True} | {
        f"vllm_{name}": value
        for name, value in settings.items()
        if correction or not name.startswith(CORRECTION)
    }


class VllmSampler:
    """Completions of a policy by vLLM; ``complete`` has the contract of `utils.models.sampling.complete`.

    In colocate mode every process has an engine of its own. In server mode the first process sends the
    weights, and all ask the server.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: ModelConfig,
        max_model_length: int,
    ):
        from accelerate import Accelerator
        from trl.generation.vllm_client import VLLMClient
        from trl.generation.vllm_generation import VLLMGeneration

        section = config.vllm
        _check_number_format(config)
        if section.mode == "colocate" and section.tensor_parallel_size > 1:
            raise UserError(
                "04 and 10 share their prompts between the processes, each with a vLLM of its own: set "
                "vllm.tensor_parallel_size 1, or vllm.mode server and give it to vllm serve"
            )
        if section.mode == "server" and is_main_process():
            _check_server(section, correction=False)
        self.max_model_length = max_model_length
        self.generation = VLLMGeneration(
            model=model,
            accelerator=Accelerator(),
            processing_class=tokenizer,
            mode=section.mode,
            server_base_url=section.server_base_url,
            server_timeout=section.server_timeout,
            group_port=section.group_port,
            gpu_memory_utilization=section.gpu_memory_utilization,
            max_model_length=max_model_length,
            max_num_seqs=config.generation.largest_batch,
            enable_sleep_mode=section.enable_sleep_mode,
            logprobs=None,
        )
        send_policy(self.generation)
        self.client: VLLMClient | None = None
        if section.mode == "server":
            own = getattr(self.generation, "vllm_client", None)  # the first process's, which sends weights
            self.client = own or VLLMClient(base_url=section.server_base_url)

    def take_weights(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Sample from ``model`` from now on."""
        self.tokenizer, self.eos = tokenizer, sorted(eos_token_ids(model, tokenizer))
        self.padding = padding_ids(model, len(tokenizer))
        self.generation.model = model
        self.generation.sync_weights()
        wait_for_everyone()  # nobody asks the server before it has them

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        num_samples: int = 1,
        **_: Any,
    ) -> list[list[Completion]]:
        """``num_samples`` completions for each prompt (token ids).

        vLLM finds common prefixes and draws random numbers by itself: what else `complete` takes is for
        those, and has no effect.
        """
        settings = {"stop_token_ids": self.eos} | without_padding(self.padding)
        drawing = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        if self.client is not None:
            found = self.client.generate(
                prompts=[list(prompt) for prompt in prompts],
                n=num_samples,
                max_tokens=max_new_tokens,
                logprobs=None,
                generation_kwargs=settings,
                **drawing,
            )["completion_ids"]
        else:
            for name, value in drawing.items():
                setattr(self.generation, name, value)
            self.generation.max_completion_length = max_new_tokens
            self.generation.generation_kwargs = settings
            rows = [list(prompt) for prompt in prompts for _ in range(num_samples)]
            _, found, _, _ = self.generation.generate(rows, images=None, num_generations=num_samples)
        completions = [as_completion(self.tokenizer, list(ids), self.eos) for ids in found]
        return [completions[start : start + num_samples] for start in range(0, len(found), num_samples)]


_samplers: list[VllmSampler] = []  # at most one: an engine holds its GPU memory until the process ends


def vllm_completer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
) -> Completer | None:
    """What completes ``prompts`` in place of `utils.models.sampling.complete`, as this policy; None where
    vLLM does not sample. Called again, it hands the same engine another policy's weights.

    Raises UserError as `VllmSampler`, and where prompt and completion exceed ``vllm.max_model_length``.
    """
    if not uses_vllm(config.vllm):
        return None
    longest = max(map(len, prompts))
    length = _model_length(config.vllm, longest, config.generation.max_new_tokens)
    if _samplers and _samplers[0].max_model_length < length:
        _samplers.clear()
    if not _samplers:
        _samplers.append(VllmSampler(model, tokenizer, config, length))
    _samplers[0].take_weights(model, tokenizer)
    return _samplers[0].complete


def _check_number_format(config: ModelConfig) -> None:
    """Raise UserError for a policy in 4 bits, whose adapter could only be merged by rounding it to them."""
    if config.model.load_in_4bit:
        raise UserError(
            "vLLM gets the policy with its adapter merged, which 4 bits would round away: set "
            "model.load_in_4bit: false, or vllm.use_vllm: false"
        )


def _model_length(section: VllmSection, prompt: int, completion: int) -> int:
    """Tokens of the longest sequence; vLLM would end completions at a lower limit without a word."""
    if section.max_model_length is not None and section.max_model_length < prompt + completion:
        raise UserError(
            f"vllm.max_model_length {section.max_model_length} is less than a prompt of {prompt} tokens with "
            f"generation.max_new_tokens {completion}: raise it, or set it to null"
        )
    return section.max_model_length or prompt + completion


def _check_server(section: VllmSection, correction: bool) -> None:
    """Raise UserError where the server is not up, or was started without what TRL needs, the importance
    ``correction`` included.
    """
    from trl.generation.vllm_client import VLLMClient

    try:
        client = VLLMClient(base_url=section.server_base_url, connection_timeout=section.server_timeout)
        settings = client.get_server_info()
    except (OSError, RuntimeError) as error:  # what TRL's client raises, in its own words
        raise UserError(f"vllm.mode server: {error}") from None
    if settings["weight_transfer_config"] is None:
        raise UserError(
            f"the vLLM server at {section.server_base_url} takes no weights; start it with {SERVER_FLAGS}"
        )
    mode = settings["model_config"]["logprobs_mode"]
    if correction and mode != "processed_logprobs":
        raise UserError(
            f"the vLLM server at {section.server_base_url} runs with --logprobs-mode {mode}, which biases "
            f"the importance correction; start it with {SERVER_FLAGS}"
        )
