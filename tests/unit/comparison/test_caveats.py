"""What is said before any comparison: trainings that changed nothing, one policy under two names, and answers
that were all cut off."""

import pytest

from tests.support.comparisons import comparison_of
from tests.support.finished_runs import STAGE_OF, compare_methods, write_methods
from tests.support.policy_results import result
from utils.comparison.caveats import all_cut_off, caveats
from utils.documents.document import plain
from utils.frame.files import read_json, sha256_of_tree, write_json
from utils.statistics.accuracy_tests import rate


def changed_manifest(run, policy, best_step=None, weights=None):
    """Let a training's manifest say which step was best, and what its weights hash to."""
    path = run / STAGE_OF[policy] / "manifest.json"
    manifest = read_json(path)
    if best_step is not None:
        manifest["metrics"]["best_step"] = best_step
    for file, sha256 in (weights or {}).items():
        name = f"{STAGE_OF[policy]}/ckpt_{policy}/{file}"
        manifest["outputs"][name] = {"sha256": sha256, "bytes": 1}
    write_json(path, manifest)
    best = f"{STAGE_OF[policy]}/ckpt_{policy}/best"
    below = {name: facts["sha256"] for name, facts in manifest["outputs"].items() if name.startswith(best)}
    tree = sha256_of_tree({name.removeprefix(f"{best}/"): sha256 for name, sha256 in below.items()})
    for reader in run.rglob("manifest.json") if below else ():  # what read it before must have read this
        made = read_json(reader)
        if best in made["inputs"]:
            made["inputs"][best]["sha256"] = tree
            write_json(reader, made)


def said(run, capsys):
    """The lines of a comparison after the one that names the policies, and its two reports."""
    capsys.readouterr()
    assert compare_methods(run.parent, "--overwrite", seeds=False) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = run / "11_comparison"
    lines = [line for line in lines[2:] if not line.startswith(("data: ", "training: ", "seeds: "))]
    return lines, (folder / "report.md").read_text(), (folder / "report.html").read_text()


@pytest.mark.usefixtures("unrendered")
def test_a_policy_that_training_never_changed_is_said_first(tmp_path, capsys):
    run = write_methods(tmp_path / "s0", 0)
    lines, _, page = said(run, capsys)
    assert lines[0].startswith("  base ") and "still the polic" not in page
    changed_manifest(run, "ppo", best_step=0)
    changed_manifest(run, "dpo", best_step=0)
    changed_manifest(run, "grpo", best_step=16)
    lines, report, page = said(run, capsys)
    first = "ppo and dpo are still the policies that their trainings started from"
    assert lines[0].startswith(f"- {first}: the best checkpoint is that of step 0")
    assert sum(first in line for line in lines) == 1
    top = report.split("\n\n")[2]  # after the title and what was compared
    assert top.startswith("- **ppo** and **dpo** are still the policies that their trainings started from: ")
    assert page.index("still the policies") < page.index('id="methods"')


@pytest.mark.usefixtures("unrendered")
def test_equal_weights_are_one_policy(tmp_path, capsys):
    run = write_methods(tmp_path / "s0", 0)
    for policy, adapter in (("sft", "a"), ("ppo", "b"), ("grpo", "b"), ("dpo", "c")):
        weights = {"best/adapter_model.safetensors": adapter, "best/value_head.safetensors": policy}
        changed_manifest(run, policy, weights=weights | {"final/adapter_model.safetensors": "a"})
    lines, _, _ = said(run, capsys)
    assert lines[0] == "- ppo and grpo have equal weights: they are one policy"
    changed_manifest(run, "grpo", weights={"best/adapter_model.safetensors": "d"})
    assert said(run, capsys)[0][0].startswith("  base ")


def test_answers_that_were_all_cut_off_are_said():
    half, cut = rate(1, 2), rate(2, 2)
    results = {
        "sft": [result("sft", [0, 0], truncation_rate=cut), result("sft", [0, 0], truncation_rate=cut)],
        "ppo": [result("ppo", [0, 1], truncation_rate=cut), result("ppo", [0, 1], truncation_rate=half)],
        "grpo": [result("grpo", [0, 1])],
    }
    assert all_cut_off(results) == ["sft"]
    [finding] = caveats(comparison_of({"sft": results["sft"][:1], "grpo": results["grpo"]}))
    assert plain(finding.claim) == "All answers of sft were cut off"
    assert "max_new_tokens" in finding.evidence
