"""bitsandbytes, left out until 4 bits or its optimizers are asked for.

PEFT imports it wherever it is installed, which costs each stage a second of processor time, and on a CPU it
prints that it found no kernels.
"""

import sys

NAME = "bitsandbytes"


def leave_out() -> None:
    """Let libraries that are imported from now on find it missing, unless it has been imported already."""
    sys.modules.setdefault(NAME, None)


def bring_back() -> None:
    """Let it be found after all, also by libraries that have looked for it already."""
    if sys.modules.get(NAME, NAME) is not None:
        return
    del sys.modules[NAME]
    import peft.import_utils
    import transformers.utils.import_utils

    for found in (
        peft.import_utils.is_bnb_available,
        peft.import_utils.is_bnb_4bit_available,
        transformers.utils.import_utils.is_bitsandbytes_available,
    ):
        found.cache_clear()
