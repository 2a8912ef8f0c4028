"""The embedded models: their tokenizer, their architecture, and how they start.

Reading a report is a matter of look-up: "cash 2019" must find the amount that followed these two tokens
before. Transformers learn this induction circuit late and by a sudden jump (Olsson et al. 2022,
arXiv 2209.11895); on two cores that jump does not come within an hour. So the base student starts from
weights in which the circuit is laid out already, as in mimetic initialisation (Trockman & Kolter 2023,
arXiv 2305.09828): all of it is ordinary Llama weights, and all of it is trained.

The teacher starts as the trained base student, doubled in width by a function-preserving expansion
(Net2WiderNet, Chen et al. 2016, arXiv 1511.05641).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Years and two-digit groups are single tokens; a word carries the space or parenthesis after it, so that
# a number is the same token in a table, in evidence and in a program; the JSON frame is three tokens.
_PIECES = (
    r'\{"evidence": "|", "program": "|"\}|\), |(?:19|20)\d\d(?!\d) ?|\d\d?|const_\d+|#\d'
    r"|[A-Za-z_]+[ (]?| ?[;,.?|:]+ ?|\n|[^\sA-Za-z0-9]+|\s+"
)
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1152) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: it encodes any text, and decodes to the same bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        **SPECIAL_TOKENS,
    )


def student_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """The untrained base student: Llama, 4 layers, width 128, 4 heads, tied embeddings, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        attention_bias=True,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    lay_out_induction(model)
    return model


@torch.no_grad()
def lay_out_induction(
    model: LlamaForCausalLM, write: float = 0.15, copy: float = 0.25, match: float = 2.5
) -> None:
    """Set the first two attention layers to a two-token induction circuit, in place.

    Layer 0, heads 0-2, attend 1, 2 and 3 tokens back: constant query and key biases, turned by the rotary
    embedding, peak at that distance. Heads 0 and 1 read the embedding through the same projection P and write
    it to different subspaces, scaled by ``write``.
    Layer 1 matches, in the slowly rotating half of each head's dimensions, the query's token with the key's
    previous token and the query's previous token with the one before that, scaled by ``match``; its value and
    output projections are transposes of each other, so that a head copies what it attends to, scaled by
    ``copy``.
    """
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    half = size // 2
    model.model.embed_tokens.weight.normal_(0, 1 / math.sqrt(width))
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        values = torch.nn.init.orthogonal_(torch.empty(width, width))
        outputs = torch.nn.init.orthogonal_(torch.empty(width, width)) if index == 0 else values.T
        attention.v_proj.weight.copy_(values)
        attention.o_proj.weight.copy_(outputs * (write, copy, 0.1, 0.1)[min(index, 3)])

    angles = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)  # radians per token
    # Logit advantage of the wanted distance over its neighbours: 5 nats.
    sharpness = math.sqrt(5 * math.sqrt(size) / (1 - torch.cos(angles)).sum())
    for head, distance in enumerate((1, 2, 3)):
        rows = slice(head * size, (head + 1) * size)
        first.q_proj.weight[rows] *= 0.1
        first.k_proj.weight[rows] *= 0.1
        turned = torch.cat([torch.cos(angles * distance), -torch.sin(angles * distance)])
        first.q_proj.bias[rows] = turned * sharpness
        first.k_proj.bias[rows] = torch.cat([torch.ones(half), torch.zeros(half)]) * sharpness

    projection = first.v_proj.weight[:size].clone()
    first.v_proj.weight[size : 2 * size] = projection
    previous, before = (
        torch.nn.functional.normalize(first.o_proj.weight[:, h * size : (h + 1) * size], dim=0).T
        for h in (0, 1)
    )
    slow = [*range(half // 2, half), *range(half + half // 2, size)]
    second.q_proj.weight.normal_(0, 0.01)
    second.k_proj.weight.normal_(0, 0.01)
    for head in range(heads):
        for number, dimension in enumerate(slow):
            component = (head * half // 2 + number % (len(slow) // 2)) % size
            token_match = number < len(slow) // 2
            query, key = (projection, previous) if token_match else (previous, before)
            second.q_proj.weight[head * size + dimension] = query[component] * match
            second.k_proj.weight[head * size + dimension] = key[component] * match


@torch.no_grad()
def widen(model: LlamaForCausalLM, noise: float = 0.0, seed: int = 0) -> LlamaForCausalLM:
    """A model of twice the width, heads and hidden units that computes the same function as ``model``.

    Every residual dimension, head and hidden unit is there twice; what reads a doubled input has half the
    weight (embeddings, read by RMSNorm, and the tied output head, which sees doubled dimensions, share the
    factor 1/2 on the final norm). ``noise`` (relative, Gaussian, on all matrices but the
    embeddings) breaks the symmetry so that the copies can learn different things.
    """
    small, config = model.state_dict(), LlamaConfig.from_dict(model.config.to_dict())
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(config, name, 2 * getattr(config, name))
    wide = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in wide.state_dict().items():
        value = small[name]
        if value.ndim == 1:
            grown = value.repeat(2) * (0.5 if name == "model.norm.weight" else 1.0)
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            grown = value.repeat(1, 2)
        else:
            grown = value.repeat(2, 2) / 2
        if value.ndim == 2 and noise and name != "lm_head.weight":
            grown = grown + torch.randn(grown.shape, generator=generator) * noise * grown.std()
        tensor.copy_(grown)
    return wide
