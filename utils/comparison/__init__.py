"""Evaluated policies side by side, in one run or over seeds (11_compare_runs.py): which evaluations, where
their policies come from, tests, and the report."""
