"""02: write the reward specification of a run, and test it on the run's own gold answers.

    python 02_build_rewards.py [--reward_config configs/rewards/combined.yaml]
    python 02_build_rewards.py --audit [--candidates FILE]

``--audit`` comes after 04: how well each part of the reward ranks right candidates above wrong ones.
"""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from utils.frame.config import StageConfig, setting
from utils.frame.criteria import judged
from utils.frame.files import UserError, shown, write_json
from utils.frame.stage import Stage, StageContext, main
from utils.rewards.audit.rescoring import audit_inputs
from utils.rewards.spec import RewardSpec, own_files, verified, write_reward_spec
from utils.rewards.user_components import check_own, own_fits, own_rewards, with_sources
from utils.training.inputs import candidates_file

SPLITS = ("train", "val", "test")
CASES, QUICK_CASES = 20, 3


@dataclass
class Options:
    """Options of this stage alone."""

    cases_per_split: int = setting(CASES, "records per split that unit tests are made of")
    gold_failures_allowed: float = setting(0.0, "share of golds that may fail to score as right")
    audit: bool = setting(False, "audit the rewards of 04's candidates instead; folder 02_rewards_audit")
    candidates: str = setting("", "with --audit: this file in place of the run's own candidates", path=True)

    def validate(self) -> None:
        if self.cases_per_split < 1:
            raise ValueError(f"cases_per_split must be at least 1, found {self.cases_per_split}")
        if not 0 <= self.gold_failures_allowed < 1:
            raise ValueError(f"gold_failures_allowed must be in [0, 1), found {self.gold_failures_allowed}")
        if self.candidates and not self.audit:
            raise ValueError("candidates is for --audit alone")
        if self.audit and (self.cases_per_split not in (CASES, QUICK_CASES) or self.gold_failures_allowed):
            raise ValueError("cases_per_split and gold_failures_allowed are not for --audit")


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    if not config.options.audit:
        splits = {split: run_dir / "01_preprocessing" / f"{split}.jsonl" for split in SPLITS}
        return splits | own_files(config.reward)
    return audit_inputs(candidates_file(config, run_dir), run_dir / "02_rewards" / "reward_spec.yaml")


STAGE = Stage(
    number="02",
    folder="02_rewards",
    summary="Write the reward specification of a run, and test it on the run's own gold answers.",
    reads="01_preprocessing/{train,val,test}.jsonl; with --audit 04_candidates/candidates.jsonl",
    writes="reward_spec.yaml, unit_tests/{test_cases,test_results}.json; or reward_audit.{json,png}",
    tiers={"reward": (RewardSpec, "configs/rewards/combined.yaml")},
    options=Options,
    inputs=inputs,
    fits=own_fits,
    quick={"cases_per_split": QUICK_CASES},
    judges_anew=("candidates",),
    variant=lambda config: "audit" if config.options.audit else "",
)


def run(ctx: StageContext) -> int:
    """Write reward_spec.yaml; grade every gold; run the unit tests. Returns 1 if one fails."""
    if ctx.config.options.audit:
        from utils.rewards.audit.audit import audit_stage

        return audit_stage(ctx)

    from utils.data.records import load_records
    from utils.grading.tasks import task_of
    from utils.rewards.task_reward import required_fields
    from utils.rewards.unit_cases import grade_golds, run_cases

    splits = {split: load_records(ctx.inputs[split]) for split in SPLITS}
    spec: RewardSpec = with_sources(ctx.config.reward)
    spec = replace(spec, required_fields=required_fields(spec, chain(*splits.values())))
    write_reward_spec(ctx.out / "reward_spec.yaml", spec)
    if not all(splits.values()):
        raise UserError("01_preprocessing has a split without records; check the data and run 01 again")
    if spec.own:
        golds = [(record, task_of(record.dataset).gold_completion(record)) for record in splits["val"]]
        ctx.metrics["own_of_golds"] = check_own(own_rewards(spec), golds)
        ctx.log(f"own rewards, mean over the golds of val: {ctx.metrics['own_of_golds']}")

    failures = grade_golds(ctx, splits, tuple(spec.required_fields))

    # Grading is tested even where nothing is paid for it.
    cases, results = run_cases(splits, verified(spec), ctx.config.options.cases_per_split, ctx.seed)
    failed = [result["id"] for result in results if not result["passed"]]
    folder = ctx.out / "unit_tests"
    outcome = {"cases": len(cases), "failed": failed, "gold_failures": failures, "results": results}
    write_json(folder / "test_cases.json", cases)
    write_json(folder / "test_results.json", outcome)
    ctx.metrics["unit_tests"] = {"cases": len(cases), "failed": len(failed)}
    ctx.log(f"unit tests: {len(cases) - len(failed)} of {len(cases)} passed")
    wrong = [f"a gold does not score as right: {line}" for line in failures[:5]]
    for line in [*wrong, *(f"unit test failed: {name}" for name in failed[:5])]:
        ctx.log(line)
    golds = sum(map(len, splits.values()))
    allowed = ctx.config.options.gold_failures_allowed * golds
    ctx.criteria["golds that score as right"] = judged(
        1 - len(failures) / golds, at_least=1 - allowed / golds
    )
    ctx.criteria["unit tests failed"] = judged(len(failed), equal_to=0)
    if failed or len(failures) > allowed:
        ctx.log(f"error: {len(failures)} golds and {len(failed)} tests failed; see {shown(folder)}")
        return 1
    return 0


if __name__ == "__main__":
    main(STAGE, run)
