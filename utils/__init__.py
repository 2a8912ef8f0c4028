"""The library behind the numbered scripts. A room imports only rooms above it in this list.

frame         what every script runs in
statistics    intervals and tests; knows nothing of the project
documents     text tables, figures and documents; knows nothing of the project
data          raw files in, records and prompts out
models        loading, scoring and sampling language models
grading       whether an answer is right, and why not
curricula     which prompts come next
rewards       what a completion is rewarded with, and the audit of it
training      what every training shares
rollouts      what training on sampled completions shares
methods       one folder a method: its settings and its trainer
evaluation    a policy's answers, and what is measured on them (10_evaluate.py)
comparison    policies side by side (11_compare_runs.py)
driver        all of it in one command (12_driver.py)
"""

import os

# PyTorch's threads spin while they wait for each other. On a machine that does anything else besides, that
# makes small models up to ten times slower; sleeping costs little. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
