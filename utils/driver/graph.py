"""The graph of steps: what runs in which run folder, what it rests on, and what is compared in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from utils.driver.budget import check_budgets
from utils.driver.goal import CANDIDATES, COMPARE, Goal, Overrides, Step
from utils.frame.failures import Failure
from utils.frame.files import UserError
from utils.frame.pipeline import ROWS, UNTRAINED, run_of_seed
from utils.frame.stage_plan import Plan, load_script, make_plan

Key = tuple[str, str]  # run id, step id


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        status: "done", "up to date", "failed", "blocked" (something that it rests on failed), or "skipped"
            (a comparison with nothing to compare).
        reason: why it failed or is blocked, one line that begins with the failed step's folder.
        code: the exit code of a failed step.
        seconds: how long it ran.
        stage: the folder of the step that failed, also where another is blocked by it.
        stale: whether that step still holds other, finished work, which is kept.
    """

    status: str
    reason: str = ""
    code: int = 0
    seconds: float = 0.0
    stage: str = ""
    stale: bool = False

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

    @cached_property
    def plan(self) -> Plan:
        """The resolved command line. Raises UserError, with the script's name, for a mistake in it."""
        try:
            return make_plan(load_script(self.step.script).STAGE, list(self.argv))
        except UserError as error:
            raise UserError(f"{self.step.script}: {error}") from None

    def command(self, outcomes: Outcomes) -> list[str] | None:
        """The command line, or None where there is nothing to do."""
        return list(self.argv)

    def blocked(self, outcomes: Outcomes) -> Outcome | None:
        """The outcome where something it rests on failed, with that one's reason."""
        lost = next((outcomes[need] for need in self.needs if not outcomes[need].ok), None)
        return replace(lost, status="blocked", code=0, seconds=0.0) if lost else None


class ComparisonNode(Node):
    """Stage 11 over the policies of one run. It waits for ``needs`` to end, in whichever way."""

    def blocked(self, outcomes: Outcomes) -> Outcome | None:
        """The outcome where a policy's step holds other work: the comparison stays as it is, too."""
        stale = next((outcomes[need] for need in self.needs if outcomes[need].stale), None)
        return replace(stale, status="blocked", code=0, seconds=0.0) if stale else None

    def policies(self) -> list[tuple[str, Key]]:
        """The policies to compare, each with the key of its evaluation."""
        return [(key[1].split()[-1], key) for key in self.needs]

    def command(self, outcomes: Outcomes) -> list[str] | None:
        names = [policy for policy, key in self.policies()]
        done = {policy for policy, key in self.policies() if outcomes[key].ok}
        return [*self.argv, "--policies", _flow(names)] if done - set(UNTRAINED) else None

    def failures(self, outcomes: Outcomes) -> list[Failure]:
        """What cannot be compared, and why."""
        ended = ((policy, outcomes[key]) for policy, key in self.policies())
        return [Failure(policy, each.stage, each.reason) for policy, each in ended if not each.ok]


class SeedComparison(ComparisonNode):
    """Stage 11 over seeds: ``needs`` are the evaluations of all trained policies in all seeds' runs."""

    def runs(self, outcomes: Outcomes) -> list[str]:
        """The runs that evaluated any policy: the others would leave nothing to compare."""
        return list(dict.fromkeys(key[0] for key in self.needs if outcomes[key].ok))

    def command(self, outcomes: Outcomes) -> list[str] | None:
        runs, policies = self.runs(outcomes), dict.fromkeys(policy for policy, _ in self.policies())
        lost = {failure.policy for failure in self.failures(outcomes)}
        if len(runs) < 2 or not set(policies) - lost:
            return None
        return [*self.argv, "--by_seed", "true", "--runs", ",".join(runs), "--policies", _flow(policies)]

    def failures(self, outcomes: Outcomes) -> list[Failure]:
        """What failed with any seed; of a seed with nothing to compare, one failure of all policies."""
        runs, found = self.runs(outcomes), {}
        for policy, key in self.policies():
            seed, each = key[0].removeprefix(f"{self.run_id}_"), outcomes[key]
            failure = Failure(policy if key[0] in runs else "", each.stage, each.reason, seed)
            if not each.ok:
                found.setdefault(failure.name, failure)
        return list(found.values())


def nodes_of_run(goal: Goal, overrides: Overrides, run_id: str, seed: int) -> list[Node]:
    """All steps of one run and its comparison, each after what it rests on."""
    nodes = []
    for step in goal.steps():
        # Whether there are prompts enough for the candidates is known once the data is prepared.
        check = partial(check_budgets, goal, overrides, run_id, seed) if step.name == CANDIDATES else None
        node = Node(run_id, step, tuple(overrides.argv(step, run_id, seed)), check=check)
        from_base = getattr(node.plan.config.options, "start", "sft") == "base"
        needs = ROWS["sft"].needs if from_base else step.needs
        nodes.append(replace(node, needs=tuple((run_id, need) for need in needs)))
    # Once the data is prepared, everything is refused that could only fail later: nothing is loaded before.
    place = next(place for place, node in enumerate(nodes) if node.step.name == ROWS["rewards"].name)
    nodes[place] = replace(nodes[place], check=partial(check_records, tuple(nodes)))
    evaluations = tuple(node.key for node in nodes if node.step.policy)
    compare = ComparisonNode(run_id, COMPARE, tuple(overrides.argv(COMPARE, run_id, seed)), evaluations)
    return [*nodes, compare]


def check_records(nodes: Sequence[Node]) -> None:
    """Raise UserError where a step of a run cannot take what 01 prepared."""
    for node in nodes:
        node.plan.stage.fits(node.plan.config, node.plan.run_dir)


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
        _ = node.plan  # a mistake in any of them shows now
    return nodes


def rests_on(nodes: Sequence[Node], key: Key) -> list[Node]:
    """The node of ``key`` and all nodes that its failure blocks."""
    lost = {key}
    for node in nodes:
        if not isinstance(node, ComparisonNode) and lost & set(node.needs):
            lost.add(node.key)
    return [node for node in nodes if node.key in lost]


def _flow(names: Iterable[str]) -> str:
    return f"[{', '.join(names)}]"
