"""The library behind the numbered scripts. Rooms import only rooms below them: data, grading, rewards, models,
training, evaluation, with the frame (stage, config, manifest, common) under them all."""

import os

# PyTorch's threads spin while they wait for each other. On a machine that does anything else besides, that makes
# small models up to ten times slower; sleeping costs little. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
