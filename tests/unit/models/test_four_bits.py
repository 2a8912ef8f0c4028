"""bitsandbytes is left out of stages that have no use for it, and comes back where 4 bits are asked for."""

import subprocess
import sys

from utils.frame.files import REPO_ROOT

CODE = """
import sys
import utils.models.loading, utils.training.run, peft, trl
from utils.models import four_bits
{more}
print(sys.modules.get("bitsandbytes") is None, peft.import_utils.is_bnb_4bit_available())
"""


def said(more=""):
    command = [sys.executable, "-c", CODE.format(more=more)]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split(), done.stderr


def test_it_is_left_out_and_nothing_is_said():
    assert said() == (["True", "False"], "")


def test_it_comes_back_to_libraries_that_have_looked_for_it():
    found, _ = said(
        "import trl.generation.vllm_generation as v; "
        "peft.import_utils.is_bnb_4bit_available(); four_bits.bring_back(); "
        "from peft.tuners.lora.bnb import Linear4bit; assert v.bnb.nn.Linear4bit"
    )
    assert found == ["False", "True"]
