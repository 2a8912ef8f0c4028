"""docs/finqa_study.md: its tables are what 11 makes of the committed files, by the command on the page."""

import re

from tests.support.scripts import execute_stage
from utils.frame.files import REPO_ROOT

PAGE = REPO_ROOT / "docs" / "finqa_study.md"


def test_the_tables_are_made_by_the_command_on_the_page(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    script, *argv = re.search(r'python (11_compare_runs.py) (.*) --metrics "(.*)"', page).groups()
    words = [*argv[0].split(), "--metrics", str(REPO_ROOT / argv[1]), "--outputs_root", str(tmp_path)]
    assert execute_stage(script, words) == 0
    folder = tmp_path / "finqa_study" / "11_comparison"
    made = {line for name in ("report.md", "timing.md") for line in (folder / name).read_text().splitlines()}
    rows = [line for line in page.splitlines() if re.match(r"\| (sft|rft|\w+_task_final) \|", line)]
    assert len(rows) >= 16
    assert [row for row in rows if row not in made] == []
