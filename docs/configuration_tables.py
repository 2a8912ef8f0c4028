"""The tables of docs/configuration.md: every key, and what a stage runs with where no option is given.

`python -m docs.configuration_tables` rewrites them.
"""

import sys
from pathlib import Path
from typing import Any

from utils.curricula.settings import CurriculumSettings
from utils.frame.command_line import FrameOptions, describe_keys, plain
from utils.frame.config import load_tier
from utils.frame.files import REPO_ROOT, write_text
from utils.frame.pipeline import PIPELINE, Method, row_of
from utils.frame.stage_plan import NoOptions, Stage, load_script

DOCUMENT = REPO_ROOT / "docs" / "configuration.md"
BEGIN = "<!-- tables: made by python -m docs.configuration_tables -->\n"
END = "<!-- end of tables -->\n"
HEAD = ("| key | default | what it is |", "|---|---|---|")


def stages() -> list[Stage]:
    """Return the stages of all numbered scripts, in order."""
    found = [load_script(script).STAGE for script in dict.fromkeys(row.script for row in PIPELINE)]
    return [
        one for stage in found for one in (stage, *(stage.choice.others.values() if stage.choice else ()))
    ]


def tables(found: list[Stage]) -> str:
    """Return a Markdown table of every key of every tier and of every stage's options.

    The values are those in force where a stage is run without options.
    """
    blocks = [_table("Options of every stage", "", FrameOptions())]
    presets = [stage for stage in found if _preset(stage)]
    found = [stage for stage in found if stage not in presets]
    for tier in ("model", "dataset", "reward", "algo"):
        for cls, file in dict.fromkeys(stage.tiers[tier] for stage in found if tier in stage.tiers):
            title = f"{tier.capitalize()} tier: `{cls.__name__}` (`{file}`)"
            blocks.append(_table(title, f"{tier}.", load_tier(cls, REPO_ROOT / file)))
    blocks.append(_table("Curricula of 03 distill, 05, 06 and 07", "algo.curriculum.", CurriculumSettings()))
    for stage in found:
        if stage.choice is not None:
            blocks.append(_choice(stage))
        if stage.options is not NoOptions:
            blocks.append(_table(f"Options of `{_script(stage)}`", "", stage.options()))
    blocks.append(_presets(presets))
    return "\n".join(blocks)


def _script(stage: Stage) -> str:
    row = row_of(stage.folder)
    return " ".join([row.script, *row.option])


def _preset(stage: Stage) -> bool:
    row = row_of(stage.folder)
    return isinstance(row, Method) and bool(row.code)


def _presets(stages: list[Stage]) -> str:
    lines = [
        "### Presets: what their files set, all else as their method",
        "",
        "| preset | sets |",
        "|---|---|",
    ]
    for stage in stages:
        cls, file = stage.tiers["algo"]
        plain_values = {key: value for key, _, value in describe_keys(cls())}
        given = [(key, value) for key, _, value in describe_keys(load_tier(cls, REPO_ROOT / file))]
        changed = [f"`{key}: {plain(value)}`" for key, value in given if value != plain_values[key]]
        lines.append(f"| `{_script(stage)}` | {', '.join(changed)} |")
    return "\n".join(lines) + "\n"


def _choice(stage: Stage) -> str:
    choice = stage.choice
    named = " \\| ".join([choice.default, *choice.others])
    row = f"| `{choice.option}` | `{choice.default}` | {choice.help} [{named}] |"
    return "\n".join([f"### What `{_script(stage)}` does", "", *HEAD, row]) + "\n"


def _table(title: str, prefix: str, values: Any) -> str:
    lines = [f"### {title}", "", *HEAD]
    classes = {key: value for key, _, value in describe_keys(type(values)())}
    for key, note, value in describe_keys(values):
        if key.startswith("curriculum."):  # has a table of its own
            continue
        shown = f"`{plain(value)}`"
        if value != classes[key]:
            shown += f" (in other files `{plain(classes[key])}`)"
        cells = (f"`{prefix}{key}`", shown, note)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def with_tables(document: str, found: list[Stage]) -> str:
    """Return the document with the text between its two marks replaced by fresh tables."""
    head, mark, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the document must hold the marks {BEGIN.strip()} and {END.strip()}")
    return f"{head}{BEGIN}\n{tables(found)}\n{END}{tail}"


def main(document: Path = DOCUMENT) -> int:
    """Rewrite the tables in place."""
    write_text(document, with_tables(document.read_text(encoding="utf-8"), stages()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
