"""Stand-ins for hub models: the real architecture and kind of tokenizer, tiny, with random weights.

qwen2   Qwen2.5-Instruct: byte-level BPE, ChatML template, logit columns beyond the tokenizer, tied embeddings
llama3  Llama-3.x-Instruct: byte-level BPE with numbers of up to three digits, a BOS before every text, its
        template, grouped-query attention
llama2  TinyLlama-1.1B-Chat: sentencepiece-like BPE with byte fallback, a BOS, Zephyr's template, untied
gpt2    DialoGPT-medium: GPT-2's BPE, no template, no padding token, one matrix for queries, keys and values

Templates and special tokens are the models' own, shortened by what this project never uses (tools). As with
the real models, Qwen2.5 alone has a padding token of its own; Llama 3's is added by those who fine-tune it.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from utils.data.readers.sample import generate

KINDS = ("qwen2", "llama3", "llama2", "gpt2")

_LLAMA3_PIECES = PRETOKENIZE_REGEX.replace(r"\p{N}", r"\p{N}{1,3}")
_QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_TEMPLATES = {
    "qwen2": "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\n"
    + _QWEN_SYSTEM
    + "<|im_end|>\\n' }}"
    "{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    "llama3": "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "llama2": "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + "
    "eos_token + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    "gpt2": None,
}


def make_stand_in(
    kind: str,
    folder: str | Path,
    *,
    seed: int = 0,
    hidden_size: int = 64,
    layers: int = 2,
    max_positions: int | None = None,
    scale: float = 0.05,
    chat: bool = True,
) -> Path:
    """Write a random float32 model of ``kind`` (one of `KINDS`) and its tokenizer to ``folder``.

    The tokenizer is the same for every ``seed``, so that two seeds are a student and its teacher. Weight
    matrices are normal with standard deviation ``scale``. ``hidden_size`` is a multiple of 32: heads are 16
    wide, two of them to each key-value head. ``chat`` False leaves the template out, as base models do.
    Positions are 4,096 (2,048 in llama2, 1,024 in gpt2) unless ``max_positions`` says otherwise.
    """
    folder = Path(folder)
    tokenizer = _TOKENIZERS[kind]()
    tokenizer.chat_template = _TEMPLATES[kind] if chat else None
    config = _config(kind, tokenizer, hidden_size, layers, max_positions)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_padded_stand_in(folder: str | Path, **settings) -> Path:
    """Write a stand-in of Qwen2.5 that all but always samples ids beyond its tokenizer, if it is let."""
    make_stand_in("qwen2", folder, **settings)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight[len(tokenizer) :] *= 50
    model.save_pretrained(folder)
    return Path(folder)


def _config(
    kind: str, tokenizer: PreTrainedTokenizerBase, hidden_size: int, layers: int, max_positions: int | None
) -> PreTrainedConfig:
    heads = hidden_size // 16
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=hidden_size,
            n_layer=layers,
            n_head=heads,
            n_positions=max_positions or 1024,
            **ids,
        )
    sizes = {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": max_positions or (2048 if kind == "llama2" else 4096),
    }
    if kind == "qwen2":
        # Qwen2.5 pads its vocabulary to a round number: these columns of the logits are no tokens.
        padded = len(tokenizer) + 64 - len(tokenizer) % 64
        return Qwen2Config(vocab_size=padded, tie_word_embeddings=True, **sizes, **ids)
    tied = kind == "llama3"  # as Llama 3.2's 1B and 3B
    return LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, **sizes, **ids)


# ----------------------------------------------------------------------------------------------- tokenizers


def _qwen2() -> PreTrainedTokenizerBase:
    vocabulary, merges = _byte_level(PRETOKENIZE_REGEX)
    end = len(vocabulary)
    vocabulary |= {"<|endoftext|>": end, "<|im_start|>": end + 1, "<|im_end|>": end + 2}
    return Qwen2Tokenizer(
        vocabulary,
        merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        extra_special_tokens=["<|im_start|>"],
        model_max_length=4096,
    )


def _llama3() -> PreTrainedTokenizerBase:
    specials = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    vocabulary, merges = _byte_level(_LLAMA3_PIECES)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = _byte_level_pieces(_LLAMA3_PIECES)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def _llama2() -> PreTrainedTokenizerBase:
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    vocabulary, merges = _trained(tokenizer, first, alphabet=[])
    return LlamaTokenizer(vocabulary, merges, pad_token="</s>", add_bos_token=True, model_max_length=2048)


def _gpt2() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocabulary, merges = _trained(tokenizer, [], pre_tokenizers.ByteLevel.alphabet())
    vocabulary["<|endoftext|>"] = len(vocabulary)
    return GPT2Tokenizer(vocabulary, merges, model_max_length=1024)


_TOKENIZERS = {"qwen2": _qwen2, "llama3": _llama3, "llama2": _llama2, "gpt2": _gpt2}


def _byte_level(pattern: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _byte_level_pieces(pattern)
    return _trained(tokenizer, [], pre_tokenizers.ByteLevel.alphabet())


def _byte_level_pieces(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _trained(
    tokenizer: Tokenizer, first: list[str], alphabet: Iterable[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges learned from the embedded reports, 700 in all with the ``first`` tokens."""
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=first, initial_alphabet=sorted(alphabet), show_progress=False
    )
    reports = (json.dumps(row, ensure_ascii=False) for row in generate(seed=0)["test"][:100])
    tokenizer.train_from_iterator(reports, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
