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

# The work that is estimated: the size of GSM8K and of the shipped algorithm tiers. 03 sees the demonstrations
# once, PROMPT + TAUGHT tokens each; 06 learns PASSES times from ROLLOUTS rollouts of ROLLOUT completions.
DEMONSTRATIONS, TAUGHT = 7473, 130
PROMPT, COMPLETION = 150, 300  # tokens
ROLLOUTS, ROLLOUT, GROUP, PASSES = 64, 128, 8, 2
MICRO_BATCH = 8  # sequences trained on at once
SAMPLED = 64  # completions sampled at once


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
class ResourceEstimate:
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
    found: Architecture, rank: int, load_in_4bit: bool, gradient_checkpointing: bool
) -> dict[str, float]:
    """Peak memory of sampling (04, 10), of 03 and of 06, GB."""

    def training(tokens: float) -> float:
        return activations_gb(found, round(MICRO_BATCH * tokens), gradient_checkpointing)

    held = weights_gb(found, load_in_4bit) + OVERHEAD_GB
    trained = held + TRAINED_BYTES * found.lora_parameters(rank) / 1e9
    # A group's prompt is run once, except under checkpointing.
    shared = PROMPT if gradient_checkpointing else PROMPT / GROUP
    cache = cache_gb(found, SAMPLED * (PROMPT + COMPLETION))
    found_gb = {
        "sampling": held + cache,
        "03_sft": trained + max(training(PROMPT + TAUGHT), cache),
        "06_grpo": trained + max(training(shared + COMPLETION), cache * ROLLOUT / SAMPLED),
    }
    return {name: round(value, 1) for name, value in found_gb.items()}


def hours(
    found: Architecture, load_in_4bit: bool, gradient_checkpointing: bool, card: Hardware
) -> dict[str, float]:
    """Wall-clock time of 03 and 06, hours.

    Training with frozen weights takes 4 FLOPs a weight and token (forward 2, activations' gradient 2), and 2
    more under checkpointing; 06 also scores every completion once. Sampling reads all weights and the cache
    for every token of a batch. Small models wait for Python instead: no pass is faster than it starts.
    """
    launch, flops = LAYER_SECONDS * found.layers, 4 + 2 * gradient_checkpointing
    cache = cache_gb(found, ROLLOUT * (PROMPT + COMPLETION / 2))
    read = (weights_gb(found, load_in_4bit) + cache) * 1e9 / (BANDWIDTH_SHARE * card.bandwidth)

    def passes(flops: float, sequences: int, tokens: float) -> float:
        """Seconds of passes over sequences of so many tokens, 2 FLOPs each a forward pass."""
        computing = flops * found.parameters * sequences * tokens / (COMPUTE_SHARE * card.speed)
        return max(computing, flops / 2 * sequences / MICRO_BATCH * launch)

    supervised = passes(flops, DEMONSTRATIONS, PROMPT + TAUGHT)
    sampling = ROLLOUTS * COMPLETION * max(launch, read)
    updating = passes(2 + flops * PASSES, ROLLOUTS * ROLLOUT, COMPLETION + PROMPT / GROUP)
    return {"03_sft": round(supervised / 3600, 2), "06_grpo": round((sampling + updating) / 3600, 2)}


def estimate(found: Architecture, rank: int) -> ResourceEstimate:
    """The first of plain LoRA, checkpointing and 4 bits, and of `CARDS`, that leaves some memory free.

    What exceeds the largest card in every way is given for it all the same, in the smallest form: it needs
    several.
    """
    forms = ((False, False), (False, True), (True, True))  # in 4 bits, and with checkpointing
    plans = [(card, *form) for form in forms for card in CARDS]
    fitting = (plan for plan in plans if max(memory(found, rank, *plan[1:]).values()) < 0.85 * plan[0].memory)
    card, *form = next(fitting, plans[-1])
    return ResourceEstimate(card, *form, memory(found, rank, *form), hours(found, *form, card))
