"""What every training shares: its inputs, the run and its resume points, validation, memory, trackers,
cost, and the health of its log."""
