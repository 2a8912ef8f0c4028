"""What steps import, imported once: the fork server (`fork_server.py`) begins with this module."""

import gc
import importlib

for name in (
    "math_verify",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "utils.comparison.stage",
    "utils.evaluation.policy",
    "utils.methods.distill.build",
    "utils.methods.dpo.build",
    "utils.methods.grpo.trainer",
    "utils.methods.ppo.build",
    "utils.methods.rloo.trainer",
    "utils.methods.sft.trainer",
    "utils.rewards.audit.audit",
    "utils.rollouts.candidates",
    "utils.training.run",
):
    importlib.import_module(name)

# Forked steps look at none of this when they collect garbage, and so share its memory.
gc.collect()
gc.freeze()
