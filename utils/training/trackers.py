"""Trackers besides the JSONL log: TensorBoard, Weights & Biases, Trackio, as Transformers' Trainer has them.

What they write is no output of a stage: it holds times and names of their own making. TensorBoard's event
files lie in ``<stage>/logs/tensorboard/``, W&B's in ``<stage>/logs/wandb/``; Trackio keeps its own place.
"""

from __future__ import annotations

import importlib.util
import netrc
import os
from pathlib import Path
from typing import Any

from utils.frame.files import UserError
from utils.frame.processes import is_main_process
from utils.frame.stage import StageContext

PROJECT = "bellman-bench"  # where WANDB_PROJECT names no other
_WANDB_HOST = "api.wandb.ai"


def tracker_arguments(ctx: StageContext) -> dict[str, Any]:
    """The arguments of TrainingArguments that have to do with ``training.report_to``; prepares the folders.

    Raises UserError for a tracker that is not installed, and for W&B without a key.
    """
    names = ctx.config.model.training.trackers
    if not names:
        return {"report_to": "none"}
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--report_to {name}: not installed: pip install {name}, or --report_to none")
    project = os.environ.setdefault("WANDB_PROJECT", PROJECT)
    logs = ctx.out / "logs"
    # Both read these variables when training begins.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(logs / "tensorboard")
    os.environ["WANDB_DIR"] = str(logs)
    if is_main_process():
        logs.mkdir(parents=True, exist_ok=True)  # W&B writes elsewhere where there is no such folder
    if "wandb" in names:
        _check_wandb()
        os.environ.setdefault("WANDB_DISABLE_CODE", "true")
    name = f"{ctx.run_id}/{ctx.out.relative_to(ctx.run_dir).as_posix()}"
    return {"report_to": names, "run_name": name, "project": project}


def _check_wandb() -> None:
    """Training must not run into W&B's question for a key, which nobody answers in a batch job."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled") or os.environ.get("WANDB_API_KEY"):
        return
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        known = netrc.netrc(file).hosts
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        known = {}
    host = os.environ.get("WANDB_BASE_URL", f"https://{_WANDB_HOST}").rpartition("//")[2].rstrip("/")
    if host not in known:
        raise UserError(
            "--report_to wandb: no key: put WANDB_API_KEY into .env (docs/tokens.md), "
            "or set WANDB_MODE=offline"
        )
