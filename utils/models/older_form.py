"""Model configurations as earlier systems wrote them: what describes the model, and what trained it."""

from __future__ import annotations

from typing import Any

# A model says these of itself.
DESCRIBES = {
    *("type", "model_type", "architecture", "architectures", "family", "size", "num_parameters"),
    *("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings", "context_length"),
    *(
        "num_layers",
        "n_layer",
        "num_hidden_layers",
        "num_heads",
        "num_attention_heads",
        "num_key_value_heads",
    ),
}
# Of the section ``training``: settings of supervised fine-tuning, under any name that SftAlgo's have.
SUPERVISED = {
    *("epochs", "num_epochs", "num_train_epochs", "max_steps", "learning_rate", "lr", "lr_scheduler"),
    *("batch_size", "train_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("gradient_accumulation", "warmup_steps", "weight_decay", "lr_scheduler_type"),
}


def without_older(data: dict[str, Any]) -> dict[str, Any]:
    """The file without what describes the model and what was supervised fine-tuning's (`supervised`)."""
    data = {key: value for key, value in data.items() if key not in DESCRIBES}
    if isinstance(data.get("model"), str):
        data["model"] = {"name_or_path": data["model"]}
    for section, left_out in (("model", DESCRIBES), ("training", SUPERVISED)):
        if isinstance(data.get(section), dict):
            data[section] = {key: value for key, value in data[section].items() if key not in left_out}
    model = data.get("model")
    if isinstance(model, dict) and "name" in model:
        data["model"] = {("name_or_path" if key == "name" else key): value for key, value in model.items()}
    return data


def supervised(data: dict[str, Any]) -> dict[str, Any]:
    """What the file says of supervised fine-tuning: the algorithm tier of 03 takes it, unless that has a file
    of the user's."""
    training = data.get("training")
    return {key: value for key, value in training.items() if key in SUPERVISED} if training else {}
