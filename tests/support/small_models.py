"""Random models that are smaller still than the tiny ones, of 29 tokens without a tokenizer."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
)

VOCABULARY = 29

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

COMMON = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}

CONFIGS = {
    "llama": LlamaConfig(**SIZES, **COMMON, num_key_value_heads=2, max_position_embeddings=64),
    "qwen2": Qwen2Config(**SIZES, **COMMON, num_key_value_heads=2, max_position_embeddings=64),
    "gpt2": GPT2Config(
        n_embd=16, n_layer=2, n_head=4, n_positions=64, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, **COMMON
    ),
}


def build(name: str, lora: bool = False, attention: str = "sdpa", seed: int = 0):
    """A tiny random model with weights large enough that its predictions are far from uniform."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    if lora:
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    return model
