"""Settings in the order of their effect on results, for whoever prints how two executions differ."""

from __future__ import annotations

# The largest effect first, by the beginning of the dotted key; what is not named comes after these.
_BY_EFFECT = (
    *("quick_test", "dataset.", "reward.", "algo.", "options.", "model.model.", "model.lora.", "model."),
)
# Who samples, and what no result depends on.
_LAST = (
    *("model.vllm.", "model.metadata.", "model.paths.", "model.teacher_cache."),
    *("model.training.logging_steps", "model.training.save_steps", "model.training.report_to"),
    *("model.training.dataloader_num_workers", "model.validation.num_saved_samples"),
)


def by_effect(key: str) -> tuple[bool, int]:
    """Sort key of a setting's dotted key: whether results hardly depend on it, and the place of its kind; the
    seed comes after all others that results depend on.
    """
    place = next((place for place, start in enumerate(_BY_EFFECT) if key.startswith(start)), len(_BY_EFFECT))
    return key.startswith(_LAST), place + (key == "seed")
