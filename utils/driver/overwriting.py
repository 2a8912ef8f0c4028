"""What is redone by ``--overwrite``, and a stop before anything runs where a step holds other work.

Of finished steps that are kept it is said where the code has changed since they ran.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from utils.driver.goal import listed
from utils.driver.graph import ComparisonNode, Key, Node, rests_on
from utils.frame.agreement import by_other_code
from utils.frame.files import UserError
from utils.frame.manifest import read_manifest
from utils.frame.stage_plan import Prepared, load_script, prepare, status_by_settings
from utils.frame.typed_settings import suggestion


def redone(nodes: Sequence[Node], words: Sequence[str] | None) -> set[Key]:
    """The nodes that ``--overwrite`` names, and all that rest on them; every node where it names none.

    A name is a step's ("grpo"), or a folder's as the driver shows it ("06_grpo_sec", with several runs
    "run_001_seed_1/06_grpo_sec"). ``words`` None: the option is not given. Raises UserError for another name.
    """
    if words is None:
        return set()
    names = listed(words)
    known = dict.fromkeys(name for node in nodes for name in _names(node))
    for name in names:
        if name not in known:
            raise UserError(
                f'--overwrite: there is no step "{name}" here{suggestion(name, known)}; steps are '
                f"{', '.join(dict.fromkeys(node.step.name for node in nodes))}"
            )
    roots = [node.key for node in nodes if not names or set(names) & set(_names(node))]
    return _with_followers(nodes, roots)


def refuse_stale(nodes: Sequence[Node], redo: Collection[Key]) -> dict[Key, Prepared]:
    """Raise UserError where a finished step holds other work than is asked for and is not redone.

    A step that rests on one that is still to run is judged by its settings alone. Returns what is up to date.
    """
    found: dict[Key, Prepared] = {}
    stale: dict[Key, str] = {}
    for node in nodes:
        if isinstance(node, ComparisonNode) or node.key in redo:
            continue
        if all(need in found for need in node.needs):
            prepared = prepare(load_script(node.step.script).STAGE, list(node.argv))
            status = prepared.status
            if status == "up_to_date":
                found[node.key] = prepared
        else:
            status = status_by_settings(node.plan)
        if status.startswith("stale: "):
            stale[node.key] = status.removeprefix("stale: ")
    if not stale:
        return found
    roots = _first_of(nodes, [node for node in nodes if node.key in stale])
    first = roots[0]
    raise UserError(
        f"{first.run_id}/{first.plan.name} holds other work ({stale[first.key]}), so nothing was run: the "
        f"same command with --overwrite {' '.join(_shortest(nodes, roots))} redoes it and what rests on it; "
        "or choose another --run_id"
    )


def say_other_code(nodes: Sequence[Node], redo: Collection[Key], strict: bool) -> None:
    """Say on one line which finished steps other code ran than there is now; ``strict``: raise UserError."""
    steps = [node for node in nodes if not isinstance(node, ComparisonNode) and node.key not in redo]
    other = [node for node in steps if by_other_code(read_manifest(node.plan.out) or {})]
    if not other:
        return
    names = ", ".join(dict.fromkeys(node.plan.name for node in other))
    if strict:
        again = " ".join(_shortest(nodes, _first_of(nodes, other)))
        raise UserError(
            f"--strict_code: the code has changed since {names} ran, so nothing was run: the same command "
            f"with --overwrite {again} redoes them"
        )
    print(f"the code has changed since these ran, which are kept (--strict_code refuses): {names}")


def _first_of(nodes: Sequence[Node], wanted: Sequence[Node]) -> list[Node]:
    """Those that rest on no other of them."""
    after = {node.key for each in wanted for node in rests_on(nodes, each.key) if node.key != each.key}
    return [node for node in wanted if node.key not in after]


def _names(node: Node) -> tuple[str, str, str]:
    """Of a step and its variants in all runs, of one of them in all runs, and in its run."""
    return node.step.name, node.plan.name, f"{node.run_id}/{node.plan.name}"


def _shortest(nodes: Sequence[Node], wanted: Sequence[Node]) -> list[str]:
    """The fewest names that stand for these nodes and no others."""
    keys = {node.key for node in wanted}
    found = []
    for node in wanted:
        for name in _names(node):
            if all(other.key in keys for other in nodes if name in _names(other)):
                found.append(name)
                break
    return list(dict.fromkeys(found))


def _with_followers(nodes: Sequence[Node], roots: Sequence[Key]) -> set[Key]:
    found = {node.key for root in roots for node in rests_on(nodes, root)} | set(roots)
    return found | {
        node.key for node in nodes if isinstance(node, ComparisonNode) and found & set(node.needs)
    }
