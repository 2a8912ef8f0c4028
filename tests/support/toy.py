"""A toy pipeline (01, 03, 10) that the tests of the frame run in this process or in one of its own."""

import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.frame.config import setting
from utils.frame.files import UserError, write_csv, write_json, write_jsonl, write_text
from utils.frame.stage import Stage, StageContext, main
from utils.models.settings import ModelConfig


@dataclass
class Inner:
    rate: float = setting(0.5, "a rate")

    def validate(self) -> None:
        if self.rate > 1:
            raise ValueError(f"rate must be at most 1, found {self.rate}")


@dataclass
class ToyAlgo:
    learning_rate: float = setting(1e-3, "step size")
    max_steps: int = setting(5, "steps")
    kind: Literal["sigmoid", "linear"] = setting("linear", "shape")
    names: list[str] = setting([], "names")
    weights: dict[str, float] = setting({}, "weights by name")
    limit: int | None = setting(None, "limit")
    shuffle: bool = setting(False, "shuffle")
    inner: Inner = field(default_factory=Inner)


@dataclass
class FirstOptions:
    rows: int = setting(3, "rows to write")
    source: str = setting("", "an outside file to read", path=True)


@dataclass
class SecondOptions:
    fail: str = setting("", "how to fail: error, crash, verdict, interrupt, kill, terminate")
    variant: str = setting("", "variant")


FIRST = Stage(
    number="01",
    folder="01_preprocessing",
    summary="Write rows.",
    reads="an outside file",
    writes="train.jsonl, table.csv",
    options=FirstOptions,
    inputs=lambda config, run_dir: {"source": Path(config.options.source)} if config.options.source else {},
    quick={"rows": 1},
)

SECOND = Stage(
    number="03",
    folder="03_sft",
    summary="Sum rows.",
    reads="01_preprocessing/train.jsonl",
    writes="ckpt_sft/",
    tiers={
        "model": (ModelConfig, "tests/support/toy_model.yaml"),
        "algo": (ToyAlgo, "tests/support/toy_algo.yaml"),
    },
    options=SecondOptions,
    inputs=lambda config, run_dir: {"train": run_dir / "01_preprocessing" / "train.jsonl"},
    quick={"algo.max_steps": 2, "algo.inner.rate": 0.1},
    variant=lambda config: config.options.variant,
)

THIRD = Stage(
    number="10",
    folder="10_evaluation",
    summary="Read a folder.",
    reads="03_sft/ckpt_sft",
    writes="metrics.json",
    inputs=lambda config, run_dir: {"policy": run_dir / "03_sft" / "ckpt_sft"},
    variant="sft",
)


def run_first(ctx: StageContext) -> None:
    rows = [{"id": i, "text": "é\n"} for i in range(ctx.config.options.rows)]
    write_jsonl(ctx.out / "train.jsonl", ctx.progress(rows, description="rows"))
    write_csv(ctx.out / "table.csv", [{"a": 'x\n"y"', "b": 1}], ["a", "b"])
    ctx.metrics["rows"] = len(rows)


def run_second(ctx: StageContext) -> int | None:
    """Count up to max_steps, one step noted at a time, so that an interrupted execution can be resumed."""
    steps = ctx.out / "resume" / "steps.txt"
    done = int(steps.read_text()) if ctx.resuming and steps.exists() else 0
    ctx.log(f"from step {done}")
    for step in range(done, ctx.config.algo.max_steps):
        fail = ctx.config.options.fail if step == 2 and not ctx.resuming else ""
        if fail == "error":
            raise UserError("no\ngood")
        if fail == "crash":
            raise RuntimeError("a bug")
        if fail == "verdict":
            return 1
        if fail == "interrupt":
            raise KeyboardInterrupt
        if fail == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if fail == "kill":
            (ctx.out / ".tmp-1-half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        write_text(steps, str(step + 1))
        write_text(ctx.out / "logs" / "timings.jsonl", "volatile")
    write_json(ctx.out / "ckpt_sft" / "weights.json", {"steps": ctx.config.algo.max_steps, "seed": ctx.seed})
    ctx.runtime["tokens_per_second"] = 12.5
    return None


def run_third(ctx: StageContext) -> None:
    write_json(ctx.out / "metrics.json", {"value": 1})


STAGES = {"01": (FIRST, run_first), "03": (SECOND, run_second), "10": (THIRD, run_third)}

if __name__ == "__main__":
    number = sys.argv.pop(1)
    main(*STAGES[number])
