"""docs/finqa_study.md: its tables are what 11 makes of the committed files, by the commands on the page."""

import json
import os
import re
import shlex
import subprocess

from tests.support.scripts import execute_stage
from utils.frame.files import REPO_ROOT
from utils.frame.stage_plan import load_script, make_plan

PAGE = REPO_ROOT / "docs" / "finqa_study.md"


def test_the_tables_are_made_by_the_commands_on_the_page(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^    python (11_compare_runs\.py .*)$", page, re.MULTILINE)
    assert len(commands) == 12
    for command in commands:
        script, *words = shlex.split(command)
        words = [str(REPO_ROOT / word) if word.startswith("docs/") else word for word in words]
        assert execute_stage(script, [*words, "--outputs_root", str(tmp_path)]) == 0
    reports = [*tmp_path.glob("*/11_comparison/report.md"), *tmp_path.glob("*/11_comparison/timing.md")]
    assert len(reports) == 24
    made = {line for report in reports for line in report.read_text().splitlines()}
    policies = r"\| (base|(\w+/)?sft|sft_second|rft|\w+_final) \|"
    rows = [line for line in page.splitlines() if re.match(policies, line)]
    assert len(rows) >= 80
    assert [row for row in rows if row not in made] == []


def test_the_stages_understand_the_commands_of_the_second_epoch(tmp_path):
    """With a `python` that writes its words down: every seed's second epoch goes on from its own first and is
    what PPO and GRPO start from; the first seed's teaches all; what is evaluated, a training has written."""
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$COMMANDS"\n')
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "COMMANDS": str(tmp_path / "commands"),
    }
    command = ["bash", "runs/finqa_smollm2_second_epoch.sh", "DATA", "7", "8"]
    subprocess.run(command, check=True, env=environment, cwd=REPO_ROOT, timeout=60)
    commands = [shlex.split(line) for line in (tmp_path / "commands").read_text().splitlines()]
    assert [script[:2] for script, *_ in commands] == ["12"] * 2 + ["10", "03", "10", "05", "10"] * 2
    plans = []
    for script, *words in commands:
        if script.startswith("12"):
            assert load_script(script).main([*words, "--export_plan", str(tmp_path / "plan.json")]) == 0
            steps = [step["argv"][1:] for step in json.loads((tmp_path / "plan.json").read_text())]
            steps = [step for step in steps if step[0][:2] not in ("11", "12")]
        else:
            steps = [[script, *words]]
        plans += [make_plan(load_script(script).STAGE, words) for script, *words in steps]

    first, second = "outputs/finqa_smollm2_seed_", "outputs/finqa_smollm2_second_seed_"
    final = "03_sft/ckpt_sft/final"
    written = {f"outputs/{plan.run_dir.name}/{plan.out.name}" for plan in plans}
    stages = [plan.out.name for plan in plans]
    assert all(stages.count(name) == 2 for name in ("03_sft", "05_ppo_task", "06_grpo_task", "05_ppo"))
    for plan in plans:
        if (run := f"outputs/{plan.run_dir.name}").startswith(second):
            if plan.out.name[:2] > "02":
                assert plan.config.model.model.name_or_path == run.replace(second, first) + f"/{final}"
        else:
            if plan.out.name != "sft_second":
                assert plan.config.model.model.teacher_name_or_path == f"{second}7/{final}"
            if plan.out.parent.name == "10_evaluation":
                assert plan.config.options.policy_ckpt.split("/ckpt_")[0] in written
