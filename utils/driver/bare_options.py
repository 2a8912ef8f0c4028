"""Options that the driver is given without an owner: ``--kl_coef 0.1`` reaches every step that has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from utils.driver.goal import COMPARE, OWN_OPTIONS, TIERS, Goal, Overrides
from utils.frame.command_line import known_keys
from utils.frame.config import load_tier
from utils.frame.files import UserError
from utils.frame.pipeline import METHODS
from utils.frame.stage_plan import load_script
from utils.frame.synonyms import ELSEWHERE, FRAME_SYNONYMS, REFUSED, RESUMING, SWITCHES, Key, having, meant
from utils.frame.tier_files import check_kind, given_file

# Where the text of --help stops saying what a setting is, and begins to say of its values.
_DETAIL = re.compile(r"[;:(,]")


def with_own_names(argv: Sequence[str]) -> list[str]:
    """The driver's command line with the frame's options under their own names, and without a request to
    resume, which the driver does anyway. Raises UserError for one to resume from elsewhere.
    """
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--"):
            words.append(word)
        elif name in RESUMING:
            value = text if equals else rest.pop(0) if rest and not rest[0].startswith("--") else "true"
            if value.lower() not in ("true", "auto", "latest", "last"):
                raise UserError(
                    f"--{name} {value}: the driver resumes whatever was interrupted; to start from another "
                    "policy give --policy_ckpt"
                )
        else:
            words.append(f"--{FRAME_SYNONYMS.get(name, name)}{equals}{text}")
    return words


def add_bare(overrides: Overrides, name: str, values: list[str], goal: Goal) -> bool:
    """File an option without an owner with all steps that have it; False where none has.

    Raises UserError where it means different things in them, naming both, or something else here.
    """
    name = name.replace("-", "_")
    if name in OWN_OPTIONS:
        raise UserError(f"--{name}: {OWN_OPTIONS[name]}")
    if name in SWITCHES:
        return _add_switch(overrides, name, values, goal)
    meanings: dict[str, dict[str, tuple[str, Key]]] = {}
    for step in [*goal.steps(), COMPARE]:
        keys = known_keys(step.stage)
        found = meant(name, keys, values[0] if values else None) or having(name, keys)
        for full in found:
            key = keys[full]
            what = full if key.owner in TIERS else _DETAIL.split(key.help)[0].strip()
            meanings.setdefault(what, {})[step.name] = (full, key)
    if not meanings:
        if reason := REFUSED.get(name) or ELSEWHERE.get(name):
            raise UserError(f"--{name} is not taken: {reason}")
        return False
    if len(meanings) > 1:
        homes = [_home(of_steps) for of_steps in meanings.values()]
        raise UserError(f"--{name} means different things in this run: write {' or '.join(homes)}")
    [of_steps] = meanings.values()
    for step, (full, key) in of_steps.items():
        if key.owner in TIERS:
            overrides.tiers.setdefault(key.owner, []).extend([f"--{full}", *values])
            break
        overrides.steps.setdefault(step, []).extend([f"--{full}", *values])
    return True


def _home(of_steps: dict[str, tuple[str, Key]]) -> str:
    step, (full, key) = next(iter(of_steps.items()))
    owned = full if key.owner in TIERS else f"{step}.{full.removeprefix('algo.')}"
    return f"--{owned} ({key.help})"


def _add_switch(overrides: Overrides, name: str, values: list[str], goal: Goal) -> bool:
    if values and values[0].lower() == "false":
        return True
    targets = [(target.partition("@")[0], text) for target, text in SWITCHES[name]]
    if len(targets) > 1:
        both = " or ".join(f"--{target} {text}" for target, text in targets)
        raise UserError(f"--{name} means different things in this run: write {both}")
    return add_bare(overrides, targets[0][0], [targets[0][1]], goal)


def add_algorithm_files(overrides: Overrides, files: Sequence[str], goal: Goal) -> None:
    """File each ``--algo_config FILE`` with the method that it is for: the one of its name, else the only
    one that takes its keys. Raises UserError where none or several do.
    """
    for file in files:
        path = given_file(file)
        check_kind(path, "algo_config")
        fits, refused = [], None
        for method in goal.methods:
            stage = load_script(METHODS[method].script).STAGE.chosen(METHODS[method].option)[0]
            try:
                load_tier(stage.tiers["algo"][0], path)
                fits.append(method)
            except UserError as error:
                refused = error
        if not fits:
            raise refused or UserError(f"--algo_config {file}: no method takes it")
        named = [method for method in fits if method == Path(file).stem]
        if len(named or fits) > 1:
            raise UserError(
                f"--algo_config {file} could be for {', '.join(fits)}: give it to one, such as "
                f"--{fits[0]}.algo_config {file}"
            )
        overrides.steps.setdefault((named or fits)[0], []).extend(["--algo_config", file])
