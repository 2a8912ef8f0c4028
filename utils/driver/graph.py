"""The graph of steps: what runs in which run folder, what it rests on, and what is compared in the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from utils.driver.budget import check_budgets
from utils.driver.goal import CANDIDATES, COMPARE, DISTILL, SFT, Goal, Overrides, Step
from utils.frame.credentials import redact
from utils.frame.files import UserError
from utils.frame.stage_plan import Plan, load_script, make_plan

Key = tuple[str, str]  # run id, step id
UNTRAINED = ("base", "teacher")  # policies that are the same with every seed


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        status: "done", "up to date", "failed", "blocked" (something that it rests on failed), or "skipped"
            (a comparison with nothing to compare).
        reason: why it failed or is blocked, one line that begins with the failed step's folder.
        code: the exit code of a failed step.
        seconds: how long it ran.
    """

    status: str
    reason: str = ""
    code: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status in ("done", "up to date")


Outcomes = Mapping[Key, Outcome]


@dataclass(frozen=True)
class Node:
    """One step of one run. ``needs`` must have succeeded; ``check`` may refuse it (UserError) before it runs.

    Args:
        run_id: the run's folder.
        step: what runs.
        argv: its command line.
        needs: keys of the nodes whose results it reads.
        check: called once ``needs`` are finished.
    """

    run_id: str
    step: Step
    argv: tuple[str, ...]
    needs: tuple[Key, ...] = ()
    check: Callable[[], None] | None = None

    @property
    def key(self) -> Key:
        return self.run_id, self.step.id

    def command(self, outcomes: Outcomes) -> list[str] | None:
        """The command line, or None where there is nothing to do."""
        return list(self.argv)

    def blocked(self, outcomes: Outcomes) -> Outcome | None:
        """The outcome where something it rests on failed, with that one's reason."""
        for need in self.needs:
            if not outcomes[need].ok:
                return Outcome("blocked", outcomes[need].reason)
        return None


class Comparison(Node):
    """Stage 11 over the policies of one run. It waits for ``needs`` to end, in whichever way."""

    def blocked(self, outcomes: Outcomes) -> Outcome | None:
        return None

    def policies(self) -> list[tuple[str, Key]]:
        """The policies to compare, each with the key of its evaluation."""
        return [(key[1].split()[-1], key) for key in self.needs]

    def command(self, outcomes: Outcomes) -> list[str] | None:
        done = [policy for policy, key in self.policies() if outcomes[key].ok]
        if not set(done) - set(UNTRAINED):
            return None
        return [*self.argv, "--policies", _flow(done), *_failures(self.lost(outcomes))]

    def lost(self, outcomes: Outcomes) -> list[str]:
        """What failed, "policy: reason"."""
        ended = ((policy, outcomes[key]) for policy, key in self.policies())
        return [f"{policy}: {outcome.reason}" for policy, outcome in ended if not outcome.ok]


class SeedComparison(Comparison):
    """Stage 11 over seeds: ``needs`` are the evaluations of all trained policies in all seeds' runs."""

    def command(self, outcomes: Outcomes) -> list[str] | None:
        runs, policies, failures = seeds_to_compare(self, outcomes)
        if len(runs) < 2 or not policies:
            return None
        of_seeds = ["--by_seed", "true", "--runs", ",".join(runs), "--policies", _flow(policies)]
        return [*self.argv, *of_seeds, *_failures(failures)]


def seeds_to_compare(node: Comparison, outcomes: Outcomes) -> tuple[list[str], list[str], list[str]]:
    """Runs that evaluated any policy, policies that all of these evaluated, and what failed.

    A failure is "seed_1/ppo: reason", and "seed_1: reason" for a seed whose run has no policy at all: that
    seed is left out, since otherwise it would leave nothing to compare.
    """
    of_run: dict[str, dict[str, Outcome]] = {}
    for policy, key in node.policies():
        of_run.setdefault(key[0], {})[policy] = outcomes[key]
    runs, failures = [], []
    for run_id, of_policy in of_run.items():
        seed = run_id.removeprefix(f"{node.run_id}_")
        lost = {policy: outcome.reason for policy, outcome in of_policy.items() if not outcome.ok}
        if len(lost) < len(of_policy):
            runs.append(run_id)
            failures += [f"{seed}/{policy}: {reason}" for policy, reason in lost.items()]
        else:
            failures.append(f"{seed}: {next(iter(lost.values()))}")
    policies = dict.fromkeys(policy for policy, _ in node.policies())
    shared = [policy for policy in policies if all(of_run[run_id][policy].ok for run_id in runs)]
    return runs, shared, failures


def run_of_seed(run_id: str, seed: int) -> str:
    """The name of a seed's run."""
    return f"{run_id}_seed_{seed}"


def nodes_of_run(goal: Goal, overrides: Overrides, run_id: str, seed: int) -> list[Node]:
    """All steps of one run and its comparison, each after what it rests on."""
    nodes = []
    for step in goal.steps():
        words, needs = overrides.argv(step, run_id, seed), step.needs
        if step.name == DISTILL.name and _plan(step, words).config.options.start == "base":
            needs = SFT.needs
        # Whether there are prompts enough for the candidates is known once the data is prepared.
        check = partial(check_budgets, goal, overrides, run_id, seed) if step == CANDIDATES else None
        nodes.append(Node(run_id, step, tuple(words), tuple((run_id, need) for need in needs), check))
    evaluations = tuple(node.key for node in nodes if node.step.policy)
    compare = Comparison(run_id, COMPARE, tuple(overrides.argv(COMPARE, run_id, seed)), evaluations)
    return [*nodes, compare]


def build_graph(
    goal: Goal, overrides: Overrides, run_id: str, seed: int, seeds: Sequence[int] = ()
) -> list[Node]:
    """Every node, in the order in which one job runs them.

    Args:
        goal, overrides: what is asked for.
        run_id: the run; with ``seeds`` the run of their comparison, beside <run_id>_seed_<s> of each.
        seed: of the run where ``seeds`` is empty.
        seeds: a run for each; two or more are compared with each other.

    Raises:
        UserError: for a mistake in any step's options, before anything has run.
    """
    if not seeds:
        nodes = nodes_of_run(goal, overrides, run_id, seed)
    else:
        nodes = [
            node for each in seeds for node in nodes_of_run(goal, overrides, run_of_seed(run_id, each), each)
        ]
    if len(seeds) > 1:
        evaluations = tuple(node.key for node in nodes if node.step.policy not in ("", *UNTRAINED))
        words = tuple(overrides.argv(COMPARE, run_id, 0))
        nodes.append(SeedComparison(run_id, COMPARE, words, evaluations))
    for node in nodes:
        _plan(node.step, node.argv)
    return nodes


def _plan(step: Step, words: Sequence[str]) -> Plan:
    """The resolved command line. Raises UserError, with the script's name, for a mistake in it."""
    try:
        return make_plan(load_script(step.script).STAGE, list(words))
    except UserError as error:
        raise UserError(f"{step.script}: {error}") from None


def rests_on(nodes: Sequence[Node], key: Key) -> list[Node]:
    """The node of ``key`` and all nodes that its failure blocks."""
    lost = {key}
    for node in nodes:
        if not isinstance(node, Comparison) and lost & set(node.needs):
            lost.add(node.key)
    return [node for node in nodes if node.key in lost]


def _flow(names: Sequence[str]) -> str:
    return f"[{', '.join(names)}]"


def _failures(entries: Sequence[str]) -> list[str]:
    """``--failures`` with its value, a JSON list (which the command line reads as YAML), if any failed."""
    if not entries:
        return []
    return ["--failures", json.dumps([redact(entry) for entry in entries], ensure_ascii=False)]
