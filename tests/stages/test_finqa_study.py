"""docs/finqa_study.md: its tables are what 11 makes of the committed files, by the commands on the page."""

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
    assert len(commands) == 8
    for command in commands:
        script, *words = shlex.split(command)
        words = [str(REPO_ROOT / word) if word.startswith("docs/") else word for word in words]
        assert execute_stage(script, [*words, "--outputs_root", str(tmp_path)]) == 0
    reports = [*tmp_path.glob("*/11_comparison/report.md"), *tmp_path.glob("*/11_comparison/timing.md")]
    assert len(reports) == 16
    made = {line for report in reports for line in report.read_text().splitlines()}
    rows = [line for line in page.splitlines() if re.match(r"\| (base|sft|teacher|rft|\w+_final) \|", line)]
    assert len(rows) >= 60
    assert [row for row in rows if row not in made] == []


def test_the_stages_understand_the_commands_of_the_teachers_script(tmp_path):
    """With a `python` that writes its words down: 03 trains the policy that it names, both students have its
    result as their teacher, and every evaluation reads what a training wrote."""
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$*" >> "$COMMANDS"\n')
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "COMMANDS": str(tmp_path / "commands"),
    }
    command = ["bash", "runs/finqa_smollm2_teacher.sh", "DATA", "7"]
    subprocess.run(command, check=True, env=environment, cwd=REPO_ROOT, timeout=60)
    plans = []
    for line in (tmp_path / "commands").read_text().splitlines():
        script, *argv = shlex.split(line)
        plans.append((script[:2], make_plan(load_script(script).STAGE, argv)))
    assert [number for number, _ in plans] == ["00", "01", "02", "03", "03", "05", "10", "10", "10"]
    written = {f"outputs/{plan.run_dir.name}/{plan.out.name}" for _, plan in plans}
    models = [plan.config.model.model for _, plan in plans[3:]]
    assert models[0].name_or_path == "outputs/finqa_smollm2_seed_7/03_sft/ckpt_sft/final"
    assert {model.teacher_name_or_path for model in models[1:]} == {
        "outputs/finqa_smollm2_teacher_7/03_sft/ckpt_sft/final"
    }
    for _, plan in plans[7:]:
        assert plan.config.options.policy_ckpt.split("/ckpt_")[0] in written
