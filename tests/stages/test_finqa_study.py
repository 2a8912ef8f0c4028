"""docs/finqa_study.md: its tables are what 11 makes of the committed files, by the commands on the page."""

import re
import shlex

from tests.support.scripts import execute_stage
from utils.frame.files import REPO_ROOT

PAGE = REPO_ROOT / "docs" / "finqa_study.md"


def test_the_tables_are_made_by_the_commands_on_the_page(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^    python (11_compare_runs\.py .*)$", page, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        script, *words = shlex.split(command)
        words = [str(REPO_ROOT / word) if word.startswith("docs/") else word for word in words]
        assert execute_stage(script, [*words, "--outputs_root", str(tmp_path)]) == 0
    reports = [*tmp_path.glob("*/11_comparison/report.md"), *tmp_path.glob("*/11_comparison/timing.md")]
    assert len(reports) == 10
    made = {line for report in reports for line in report.read_text().splitlines()}
    rows = [line for line in page.splitlines() if re.match(r"\| (sft|rft|\w+_task_final) \|", line)]
    assert len(rows) >= 36
    assert [row for row in rows if row not in made] == []
