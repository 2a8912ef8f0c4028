"""The scripts 02 to 10 held against faults, each small: a model of one layer, on what the stages before left.

Importing this imports what they import, once for all trials, and makes figures outlines: rendering would take
longer than all else.
"""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import utils.driver.preloaded  # noqa: F401
from tests.external.faults.trials import SAME, Program, all_trials, print_head, print_row
from tests.support.outlines import save_outline
from utils.frame.files import REPO_ROOT

Figure.savefig = save_outline

SMALL = "--name_or_path {work}/student --teacher_name_or_path {work}/teacher --max_new_tokens 24"
OFTEN = "--save_steps 1 --eval_steps 1 --validation.num_items 1 --logging_steps 1"
# Folder -> the one that it begins as, and what has run there. It takes the embedded student to find pairs.
ROOTS = {
    "data": ("", ["00_check_data.py", "01_prepare_dataset.py"]),
    "rewards": ("data", ["02_build_rewards.py"]),
    "policy": ("rewards", [f"03_sft_train.py {SMALL}"]),
    "candidates": ("rewards", ["03_sft_train.py", "04_generate_candidates.py"]),
    "pairs": ("candidates", ["08_build_prefs.py"]),
}


class Trial(NamedTuple):
    """A folder of `ROOTS`, what the script reads there, and its words."""

    root: str
    reads: str
    words: str


TRIALS = {
    "02": Trial("data", "01_preprocessing", "02_build_rewards.py"),
    "03": Trial(
        *("rewards", "01_preprocessing"),
        f"03_sft_train.py --max_steps 3 --per_device_train_batch_size 2 {SMALL} {OFTEN}",
    ),
    "distill": Trial(
        *("policy", "03_sft/ckpt_sft/best"),
        f"03_sft_train.py --objective distill --num_rollouts 3 --per_device_train_batch_size 4 {SMALL} "
        + OFTEN,
    ),
    "04": Trial("policy", "03_sft/ckpt_sft/best", f"04_generate_candidates.py {SMALL}"),
    "05": Trial(
        *("policy", "03_sft/ckpt_sft/best"),
        f"05_train_ppo.py --num_rollouts 3 --rollout_batch_size 8 {SMALL} {OFTEN}",
    ),
    "06": Trial(
        *("policy", "03_sft/ckpt_sft/best"),
        f"06_train_grpo.py --num_rollouts 3 --per_device_train_batch_size 4 {SMALL} {OFTEN}",
    ),
    "07": Trial(
        *("policy", "03_sft/ckpt_sft/best"),
        f"07_train_rloo.py --num_rollouts 3 --per_device_train_batch_size 4 {SMALL} {OFTEN}",
    ),
    "08": Trial("candidates", "04_candidates", "08_build_prefs.py"),
    "09": Trial(
        *("pairs", "08_preferences"),
        f"09_train_dpo.py --max_steps 3 --per_device_train_batch_size 2 {OFTEN}",
    ),
    "10": Trial(
        *("policy", "03_sft/ckpt_sft/best"),
        f"10_evaluate.py --policy sft --max_items 4 --num_samples 2 --generation.batch_size 1 {SMALL}",
    ),
}


def try_stages(names: list[str], numbers: dict[str, int], seed: int, work: Path) -> bool:
    """The trials of these stages, and a table of each fault in all of them; whether all ended as they may.

    A line for each stage, and what was said of bad ends, stand above it.
    """
    make_models(work)
    for root, (parent, scripts) in ROOTS.items():
        if parent:
            shutil.copytree(work / parent, work / root)
        for words in scripts:
            subprocess.run(command(words, work, work / root), cwd=REPO_ROOT, check=True, capture_output=True)
    programs = {}
    for name in names:
        trial, place = TRIALS[name], work / "trials" / name
        place.mkdir(parents=True)
        words = command(trial.words, work, "{root}")
        programs[name] = Program(words, work / trial.root, place, f"run_001/{trial.reads}")
        programs[name].measure()
    faults: dict[str, Counter] = {}
    clean = True
    for name, program in programs.items():
        whole = Counter()
        for what, count, said in all_trials(program, numbers, seed):
            faults[what] = faults.get(what, Counter()) + count
            whole += count
            print(*said, sep="\n", end="\n" if said else "", flush=True)
            clean &= not said
        print(f"{name}: {whole.total()} trials, {whole[SAME]} ended in the same bytes", flush=True)
    print_head()
    for what, count in faults.items():
        print_row(what, count)
    return clean


def command(words: str, work: Path, root: Path | str) -> list[str]:
    """The small version of a numbered script, on the run below ``root``."""
    script, *options = words.replace("{work}", str(work)).split()
    return [sys.executable, str(REPO_ROOT / script), *options, "--quick_test", "--outputs_root", str(root)]


def make_models(folder: Path) -> None:
    """A random student and teacher of one layer, with the embedded ones' tokenizer."""
    torch.manual_seed(0)
    for name in ("student", "teacher"):
        config = AutoConfig.from_pretrained(REPO_ROOT / "assets" / name)
        config.update({"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16})
        config.update({"num_attention_heads": 2, "num_key_value_heads": 1})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(REPO_ROOT / "assets" / name).save_pretrained(folder / name)
