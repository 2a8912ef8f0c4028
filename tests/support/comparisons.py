"""Comparisons made of results at hand, and what topics say of them as text."""

from pathlib import Path

from utils.comparison.estimates import over_runs
from utils.comparison.over_seeds import compare_seeds
from utils.comparison.paired import compare_all
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import section_markdown


def comparison_of(results, **more) -> Comparison:
    """Policies as they are (policy -> its result in each run), in folders that lie in no run."""
    found = {name: [result.metrics["accuracy"] for result in of_runs] for name, of_runs in results.items()}
    single = all(len(of_runs) == 1 for of_runs in results.values())
    made = {
        "folders": {name: [Path("nowhere", name)] * len(of_runs) for name, of_runs in results.items()},
        "results": results,
        "accuracies": {name: over_runs(each, (0.0, 1.0)) for name, each in found.items()},
        "pairs": compare_all([result for (result,) in results.values()], 0) if single else [],
    }
    return Comparison(**made | more)


def comparison_over_seeds(experiment, runs=None, **more) -> Comparison:
    """An experiment's policies, in folders that lie in no run."""
    made = {
        "folders": {name: [Path("nowhere", name)] * len(experiment.runs) for name in experiment.policies},
        "results": experiment.results,
        "accuracies": dict(zip(experiment.policies, experiment.means, strict=True)),
        "pairs": compare_seeds(experiment),
        "experiment": experiment,
        "seed_runs": runs,
    }
    return Comparison(**made | more)


def text_of(topic: Topic) -> str:
    """A topic's sections in Markdown."""
    return "\n\n".join(map(section_markdown, topic.sections))
