"""How much memory and time a model takes: estimates from its sizes, before anything has been measured.

GB are 10^9 bytes. The formulas, and what they leave out, are in docs/models.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.models.inspection.architecture import Architecture

NF4_BYTES = 0.516  # a weight in NF4 with doubly quantised scales: 4.127 bits (arXiv 2305.14314, section 3)
TRAINED_BYTES = 16  # a trained weight in float32: itself, its gradient and Adam's two moments
OVERHEAD_GB = 2.0  # CUDA context, library workspaces, what the allocator cannot use
COMPUTE_SHARE = 0.3  # of the peak speed that training reaches
BANDWIDTH_SHARE = 0.2  # of the peak bandwidth that sampling with Transformers reaches
LAYER_SECONDS = 1e-3  # that starting a layer's kernels takes from Python, in a forward pass


@dataclass(frozen=True)
class Hardware:
    """One GPU: memory, GB; dense bfloat16 speed, FLOP/s; memory bandwidth, bytes/s (its data sheet)."""

    name: str
    memory: float
    speed: float
    bandwidth: float


CARDS = (
    Hardware("one RTX 4090 (24 GB)", 24, 165e12, 1.01e12),
    Hardware("one H100 SXM (80 GB)", 80, 989e12, 3.35e12),
)


@dataclass(frozen=True)
class Work:
    """What the estimates are for: the size of GSM8K and of the shipped algorithm tiers.

    demonstrations  of 03, seen once, ``prompt + taught`` tokens each
    rollouts        of 05 and 06, ``rollout`` completions of ``completion`` tokens each, ``group`` to a
                    prompt, learned from ``passes`` times
    micro_batch     sequences that are trained on at once
    sampled         completions that are sampled at once
    """

    demonstrations: int = 7473
    taught: int = 130
    prompt: int = 150
    completion: int = 300
    rollouts: int = 64
    rollout: int = 128
    group: int = 8
    passes: int = 2
    micro_batch: int = 8
    sampled: int = 64


@dataclass(frozen=True)
class Estimate:
    """Peak memory (GB) and wall-clock time (hours) of sampling, 03 and 06 with LoRA, on ``hardware``."""

    hardware: Hardware
    load_in_4bit: bool
    gradient_checkpointing: bool
    memory_gb: dict[str, float]
    hours: dict[str, float]


def weights_gb(found: Architecture, load_in_4bit: bool) -> float:
    """The frozen weights: bfloat16, or NF4 in the linear layers."""
    quantised = found.linear if load_in_4bit else 0
    return (2 * (found.parameters - quantised) + NF4_BYTES * quantised) / 1e9


def activations_gb(found: Architecture, tokens: int, gradient_checkpointing: bool) -> float:
    """What ``tokens`` leave for the backward pass, in bfloat16: the input and output of every linear layer
    and twice the width for each of two norms; under checkpointing, the input of every block and one block.
    """
    numbers = found.lora_parameters(1)  # an adapter of rank 1 has one weight for each of them
    block = numbers / found.layers + 4 * found.hidden
    kept = found.layers * found.hidden + block if gradient_checkpointing else found.layers * block
    return 2 * kept * tokens / 1e9


def cache_gb(found: Architecture, tokens: int) -> float:
    """Keys and values of ``tokens``, bfloat16."""
    return 2 * found.layers * found.cache_width * tokens / 1e9


def memory(
    found: Architecture, rank: int, load_in_4bit: bool, gradient_checkpointing: bool, work: Work
) -> dict[str, float]:
    """Peak memory of sampling (04, 10), of 03 and of 06, GB."""
    held = weights_gb(found, load_in_4bit) + OVERHEAD_GB
    trained = TRAINED_BYTES * found.lora_parameters(rank) / 1e9
    # A group's prompt is run once, except under checkpointing.
    shared = work.prompt * (1 if gradient_checkpointing else 1 / work.group)
    cache = cache_gb(found, work.sampled * (work.prompt + work.completion))
    supervised = activations_gb(found, work.micro_batch * (work.prompt + work.taught), gradient_checkpointing)
    grouped = activations_gb(
        found, round(work.micro_batch * (shared + work.completion)), gradient_checkpointing
    )
    found_gb = {
        "sampling": held + cache,
        "03_sft": held + trained + max(supervised, cache),
        "06_grpo": held + trained + max(grouped, cache * work.rollout / work.sampled),
    }
    return {name: round(value, 1) for name, value in found_gb.items()}


def hours(
    found: Architecture, load_in_4bit: bool, gradient_checkpointing: bool, work: Work, card: Hardware
) -> dict[str, float]:
    """Wall-clock time of 03 and 06, hours.

    Training with frozen weights takes 4 FLOPs a weight and token (forward 2, activations' gradient 2), and 2
    more under checkpointing; 06 also scores every completion once. Sampling reads all weights and the cache
    for every token of a batch. Small models wait for Python instead: no pass is faster than it starts.
    """
    launch = LAYER_SECONDS * found.layers
    trained = 4 + 2 * gradient_checkpointing
    speed = COMPUTE_SHARE * card.speed
    taught = work.demonstrations * (work.prompt + work.taught)
    completions = work.rollouts * work.rollout
    read = weights_gb(found, load_in_4bit) + cache_gb(
        found, work.rollout * (work.prompt + work.completion / 2)
    )
    step = max(launch, read * 1e9 / (BANDWIDTH_SHARE * card.bandwidth))
    tokens = completions * (work.completion + work.prompt / work.group)
    updating = max(
        (2 + trained * work.passes) * found.parameters * tokens / speed,
        (1 + trained / 2 * work.passes) * completions / work.micro_batch * launch,
    )
    supervised = max(
        trained * found.parameters * taught / speed,
        trained / 2 * work.demonstrations / work.micro_batch * launch,
    )
    return {
        "03_sft": round(supervised / 3600, 2),
        "06_grpo": round((work.rollouts * work.completion * step + updating) / 3600, 2),
    }


def estimate(found: Architecture, rank: int, work: Work | None = None) -> Estimate:
    """The first of plain LoRA, checkpointing and 4 bits, and of `CARDS`, that leaves some memory free.

    What exceeds the largest card in every way is given for it all the same, in the smallest form: it needs
    several.
    """
    work = work or Work()
    forms = [(False, False), (False, True), (True, True)]
    plans = [(card, *form) for form in forms for card in CARDS]
    card, quantised, checkpointing = next(
        (
            plan
            for plan in plans
            if max(memory(found, rank, plan[1], plan[2], work).values()) < 0.85 * plan[0].memory
        ),
        plans[-1],
    )
    return Estimate(
        card,
        quantised,
        checkpointing,
        memory(found, rank, quantised, checkpointing, work),
        hours(found, quantised, checkpointing, work, card),
    )
