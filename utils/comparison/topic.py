"""What a topic of the comparison is given, and what it returns: its columns, its text and its figures.

A topic is a file of ``topics/`` with a function ``topic(comparison) -> Topic``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.comparison import topics
from utils.comparison.estimates import Estimate
from utils.comparison.lineage import Trained, trained_policies
from utils.comparison.over_seeds import Experiment, SeedPair
from utils.comparison.paired import Pair, PolicyResult
from utils.comparison.seed_runs import SeedRuns
from utils.documents.document import Section
from utils.documents.figures import MARKERS, PALETTE, Style
from utils.frame.pipeline import POLICIES, PRESETS, policy_order
from utils.frame.stage import no_bar


@dataclass(frozen=True, eq=False)
class Comparison:
    """Policies side by side, in the order of the pipeline.

    Attributes:
        folders: policy -> folder 10_evaluation/<policy> of each run.
        results: policy -> its result in each run.
        accuracies: policy -> its accuracy, the mean over the runs where there are several.
        pairs: their tests.
        failed: policy -> reason, for those that could not be compared.
        experiment, seed_runs: of a comparison over seeds, else None.
        audits: run -> its reward_audit.json.
        efficiency_fraction, looks: the options of 11.
    """

    folders: Mapping[str, Sequence[Path]]
    results: Mapping[str, Sequence[PolicyResult]]
    accuracies: Mapping[str, Estimate]
    pairs: Sequence[Pair] | Sequence[SeedPair]
    failed: Mapping[str, str] = field(default_factory=dict)
    experiment: Experiment | None = None
    seed_runs: SeedRuns | None = None
    audits: Mapping[str, Path] = field(default_factory=dict)
    efficiency_fraction: float = 0.9
    looks: int = 1

    @property
    def policies(self) -> list[str]:
        return list(self.results)

    @property
    def runs(self) -> int:
        """How many runs a policy has: seeds, or one."""
        return max(map(len, self.results.values()))

    @cached_property
    def clusters(self) -> int | None:
        """How many reports the items come from; None where no two items share one."""
        if self.experiment:
            found = [self.experiment.clusters]
        else:
            found = [result.clusters for of_runs in self.results.values() for result in of_runs]
        return max((int(each.max()) + 1 for each in found if each is not None), default=None)

    @cached_property
    def trained(self) -> dict[str, list[Trained]]:
        """Policy -> where it comes from, in each run."""
        return trained_policies(self.folders)

    @cached_property
    def styles(self) -> dict[str, Style]:
        """How the policies are drawn in every figure."""
        return styles_of(self.policies)

    def test_of(self, base: str, policy: str) -> tuple[Pair | SeedPair | None, int]:
        """The test of two policies, and the sign that makes its difference that of the second from the first.

        No test of a policy with itself, or with one that is not compared.
        """
        pair = next((pair for pair in self.pairs if {pair.a, pair.b} == {base, policy}), None)
        return pair, 1 if pair and pair.b == policy else -1

    def intervals(self, single: str) -> str:
        """What intervals of means are: t intervals over seeds, or ``single`` with one run."""
        return f"t intervals over {self.runs} seeds" if self.runs > 1 else single

    @property
    def units(self) -> str:
        """What is sampled besides seeds."""
        return "reports" if self.clusters else "items"

    @property
    def wilson(self) -> str:
        """What the interval of a share is."""
        return "Wilson intervals" + (" that count reports" if self.clusters else "")


@dataclass(frozen=True)
class Topic:
    """What one topic says of a comparison.

    Attributes:
        sections: of report.md and report.html.
        columns: policy -> column -> value, for summary.csv; what a policy lacks is blank there.
        by_run: policy -> the same for each run, for by_seed.csv.
        files: figures and tables beside the report: name -> what writes it, given its path.
    """

    sections: Sequence[Section] = ()
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_run: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


def topics_of(comparison: Comparison, progress: Callable[..., Iterable] = no_bar) -> dict[str, Topic]:
    """Name -> topic, for every file of the folder, in the order of their sections.

    ``progress``: as `StageContext.progress`.
    """
    found = [module.name for module in pkgutil.iter_modules(topics.__path__)]
    names = [*topics.SECTIONS, *(name for name in found if name not in topics.SECTIONS)]
    modules = {name: importlib.import_module(f"{topics.__name__}.{name}") for name in names}
    return {name: modules[name].topic(comparison) for name in progress(names, description="sections")}


def styles_of(policies: Sequence[str]) -> dict[str, Style]:
    """The style of every policy: a method's own, whichever others are drawn with it.

    Variants of a method and policies of other names take what is left, each another pair of colour and
    marker. Presets come last, so that no two families share a colour; SFT, where the others start, is grey.
    """
    count = len(PALETTE)
    places = [(i % count, (i + i // count) % count) for i in range(count * count)]
    order = sorted(range(len(POLICIES)), key=lambda position: POLICIES[position] in PRESETS)
    pairs = [places[order.index(position)] for position in range(len(POLICIES))] + places[len(POLICIES) :]
    taken = {name: pairs[POLICIES.index(name)] for name in policies if name in POLICIES}
    free = (pair for pair in pairs if pair not in taken.values())
    for name in policies:
        # A "<run>/<policy>" or a variant looks like its method where nothing else does.
        position = policy_order(name)[0]
        if name not in taken and position < len(POLICIES) and pairs[position] not in taken.values():
            taken[name] = pairs[position]
    for name in policies:
        if name not in taken:
            taken[name] = next(free)
    return {name: Style(PALETTE[taken[name][0]], MARKERS[taken[name][1]]) for name in policies}
