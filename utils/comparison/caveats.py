"""What is to be known before any comparison is read: policies that are not what their names say, and answers
that were all cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from utils.comparison.lineage import Trained
from utils.comparison.paired import PolicyResult
from utils.comparison.topic import Comparison
from utils.documents.document import Finding, sentence, strong
from utils.documents.text import listed

Weights = tuple[tuple[str, str], ...]  # of a checkpoint's weight files: name and hash


def caveats(comparison: Comparison) -> list[Finding]:
    """One finding for each of: policies evaluated at step 0, equal weights under several names, policies all
    of whose answers were cut off; none where there is nothing of the kind."""
    untrained = at_step_0(comparison.trained)
    found = []
    if untrained:
        found.append(
            Finding(
                _named("{} is still the policy that its training started from", untrained)
                if len(untrained) == 1
                else _named("{} are still the policies that their trainings started from", untrained),
                "the best checkpoint is that of step 0, as no later one had a higher validation reward; a "
                "difference from its start is none of training. Evaluate the last checkpoint with "
                "10_evaluate.py --policy_ckpt",
            )
        )
    for names in equal_weights(comparison.trained):
        if not set(names) <= set(untrained):
            found.append(Finding(_named("{} have equal weights", names), "they are one policy"))
    if cut := all_cut_off(comparison.results):
        found.append(
            Finding(
                _named("All answers of {} were cut off", cut),
                "what was measured is generation.max_new_tokens and not the policy; raise it in 10",
            )
        )
    return found


def _named(template: str, names: Sequence[str]) -> Sequence:
    return sentence(template.format(listed(["{}"] * len(names))), *map(strong, names))


def at_step_0(trained: Mapping[str, Sequence[Trained]]) -> list[str]:
    """Policies whose evaluated checkpoint is, in every run, the best one, and the best that of step 0."""
    return [name for name, of_runs in trained.items() if all(map(_at_step_0, of_runs))]


def _at_step_0(trained: Trained) -> bool:
    metrics = trained.stages.get(trained.training, {}).get("metrics", {})
    return trained.checkpoint == "best" and metrics.get("best_step") == 0


def equal_weights(trained: Mapping[str, Sequence[Trained]]) -> list[list[str]]:
    """Policies whose evaluated checkpoints have the same weight files in every run, together."""
    groups: dict[tuple[Weights, ...], list[str]] = {}
    for name, of_runs in trained.items():
        weights = tuple(map(_weights, of_runs))
        if all(weights):
            groups.setdefault(weights, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _weights(trained: Trained) -> Weights:
    outputs = trained.stages.get(trained.training, {}).get("outputs", {})
    files = {PurePath(name): facts["sha256"] for name, facts in outputs.items()}
    return tuple(
        sorted(
            (path.name, sha256)
            for path, sha256 in files.items()
            if path.parent.name == trained.checkpoint
            and path.suffix == ".safetensors"
            and path.name.startswith(("adapter_model", "model"))  # not a critic
        )
    )


def all_cut_off(results: Mapping[str, Sequence[PolicyResult]]) -> list[str]:
    """Policies none of whose answers ended by themselves, in any run."""
    return [
        name
        for name, of_runs in results.items()
        if all(result.metrics.get("truncation_rate", {}).get("value") == 1 for result in of_runs)
    ]
