"""Tiny random models and their tokenizer, one token per byte."""

from pathlib import Path

ARCHITECTURES = ("llama", "qwen2", "gpt2")
VOCABULARY, EOS = 259, 1  # of the tokenizer


def make_tiny_model(architecture: str, folder: Path) -> Path:
    """Write a random "llama", "qwen2" or "gpt2" and the tokenizer below to the folder; returns it.

    Two layers, width 32, 4 heads (2 key-value heads where the architecture groups them), 256 positions,
    float32, one token per byte.
    """
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

    tokenizer = make_tiny_tokenizer()
    common = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    wide = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    configs = {
        "llama": lambda: LlamaConfig(**common, **wide),
        "qwen2": lambda: Qwen2Config(**common, **wide),
        "gpt2": lambda: GPT2Config(
            **common,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(configs[architecture]())
        # Larger than the usual initial weights, so that logits differ visibly between tokens and contexts.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_tokenizer():
    """Return a tokenizer of one token per UTF-8 byte, left-padding, whose padding token is not EOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Plain byte-level BPE without merges: Transformers rebuilds some architectures' tokenizers from the
    # vocabulary and merges alone (Qwen2's, for one), and this kind survives that unchanged.
    vocabulary = ["<pad>", "<eos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
