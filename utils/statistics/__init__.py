"""Intervals, paired tests, ranking measures and pass@k, as functions of plain numbers. Nothing here knows
what a policy, a stage or a run is."""
