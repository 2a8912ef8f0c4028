"""The library behind the numbered stages; each room imports only rooms listed above it.

common, typed, config, cli, manifest, stage < data < grading < rewards < models < training < evaluation
"""

import os

# PyTorch's threads spin while they wait for each other. On a machine that does anything else besides, that
# makes small models up to ten times slower; sleeping costs little. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
