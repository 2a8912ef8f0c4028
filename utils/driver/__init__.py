"""All of it in one command (12_driver.py): goals and options (goal), budgets (budget), the graph of steps
(graph), what is redone (overwriting), running it (execution, process), and what is shown (show)."""
