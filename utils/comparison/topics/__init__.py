"""What a comparison tells, a file a topic (see ``comparison/topic.py``); a new file here is a new topic.

Files that the orders below do not name come last, by name.
"""

# The order of their sections in report.md …
SECTIONS = (
    *("accuracy", "levels", "problem_types", "curriculum_study", "measures", "reward_by_method"),
    *("frontier", "method_cost", "validation_curves", "sample_efficiency", "stability", "reward_audit"),
    *("students", "against_teacher", "failure_counts", "acceptance_criteria", "difference_tests", "timing"),
)
# … and of their columns in summary.csv and by_seed.csv.
COLUMNS = (
    *("accuracy", "levels", "method_cost", "sample_efficiency", "against_teacher", "stability", "students"),
    "measures",
)
