"""Grades conformance cases and prints what each grader gets wrong; --list prints every such case.

    python tests/external/conformance/run_cases.py CASES.jsonl MODULE:FUNCTION [MODULE:FUNCTION ...] [--list]

A grader is a function of a case, its JSON object, that says whether the answer is right (raising means no).
"""

import importlib
import json
import sys
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path.cwd())]
path, *names = [argument for argument in sys.argv[1:] if argument != "--list"]
cases = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
for name in names:
    grader = getattr(importlib.import_module(name.partition(":")[0]), name.partition(":")[2])
    faults = Counter()
    for case in cases:
        try:
            accepted = bool(grader(case))
        except Exception:
            accepted = False
        if accepted != case["right"]:
            faults["wrong accepted" if accepted else "right rejected"] += 1
            if "--list" in sys.argv:
                print(f"{name} {'accepts' if accepted else 'rejects'} {json.dumps(case, ensure_ascii=False)}")
    print(name, len(cases), "cases", dict(faults))
