"""Where an evaluated policy comes from: the stages it rests on, the log of its training (a light import)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.comparison.evaluations import evaluated_in
from utils.comparison.manifest_diff import load_manifests
from utils.comparison.seed_runs import lineage
from utils.frame.pipeline import ROWS, after_sft, origin_of, row_of

LOG = "logs/metrics.jsonl"


@dataclass(frozen=True)
class Trained:
    """One policy of one run.

    Attributes:
        run_dir: the run's folder; of an evaluation that lies in no run, the folder above it.
        seed: that it was evaluated with, None where that is not known.
        stages: manifests of the stages whose cost is the policy's, by folder, in the order of the pipeline:
            those after SFT that it rests on, or for SFT itself (and distillation) that stage. Empty for a
            policy that no stage of the run trained.
        training: the stage that trained the weights, "" where none did.
        checkpoint: which of its checkpoints was evaluated, e.g. "best".
        after_sft: whether it was trained from an SFT policy of its run.
    """

    run_dir: Path
    seed: int | None
    stages: dict[str, dict[str, Any]]
    training: str
    checkpoint: str
    after_sft: bool = True

    @property
    def is_sft(self) -> bool:
        """Whether the policy is where the other methods start: trained on demonstrations alone."""
        return _is_sft(self.training)

    @property
    def log(self) -> Path | None:
        """The log of its training, None where there is none that the stage's manifest lists."""
        if not self.training:
            return None
        path = self.run_dir / self.training / LOG
        listed = f"{self.training}/{LOG}" in self.stages[self.training].get("outputs", {})
        return path if listed and path.is_file() else None


def trained_policies(folders: Mapping[str, Sequence[Path]]) -> dict[str, list[Trained]]:
    """Name -> where the policy of each of its evaluations (10_evaluation/<policy>) comes from.

    Raises UserError where a manifest of such a run is damaged.
    """
    places = {folder: evaluated_in(folder) for of_policy in folders.values() for folder in of_policy}
    manifests = {run: load_manifests(run) for run, _ in filter(None, places.values())}
    return {
        name: [_trained(folder, places[folder], manifests) for folder in of_policy]
        for name, of_policy in folders.items()
    }


def _trained(
    folder: Path, place: tuple[Path, str] | None, of_runs: dict[Path, dict[str, dict[str, Any]]]
) -> Trained:
    if place is None:
        return Trained(folder.parent, None, {}, "", "")
    run_dir, evaluation = place
    manifests = of_runs[run_dir]
    rests_on = lineage(manifests, evaluation)
    # Weights of an adapter and of the model below it may both lie in the run: the later stage trained it.
    found = map(origin_of, map(Path, manifests[evaluation].get("inputs", {})))
    found = [origin for origin in found if origin and origin.stage.as_posix() in rests_on]
    last = max(found, key=lambda origin: list(ROWS).index(origin.method.name), default=None)
    training, checkpoint = (last.stage.name, last.checkpoint) if last else ("", "")
    if last and folder.name != Path(evaluation).name:  # one of several checkpoints that were evaluated
        checkpoint = folder.name
    after = sorted(filter(after_sft, rests_on))
    return Trained(
        run_dir=run_dir,
        seed=manifests[evaluation]["seed"],
        stages={stage: rests_on[stage] for stage in after or filter(None, [training])},
        training=training,
        checkpoint=checkpoint,
        after_sft=any(_is_sft(stage) for stage in rests_on if stage != training),
    )


def _is_sft(stage: str) -> bool:
    return row_of(stage) is ROWS["sft"]


def training_logs(trained: Mapping[str, Sequence[Trained]]) -> dict[str, Path]:
    """Name of an input ("<run>/<stage>:metrics.jsonl") -> training log, for all that there are."""
    logs = {each.log for of_policy in trained.values() for each in of_policy if each.log}
    runs = [log.parents[2] for log in sorted(logs)]
    # Runs of one name in two places are told apart by their paths, which no output holds.
    alike = {run.name for run in runs if sum(other.name == run.name for other in set(runs)) > 1}
    return {
        f"{run if run.name in alike else run.name}/{log.parents[1].name}:{log.name}": log
        for run, log in zip(runs, sorted(logs), strict=True)
    }
