"""05: proximal policy optimisation (PPO) of the SFT policy, with a reward for every token.

    python 05_train_ppo.py [--reward combined|task|intrinsic] [--learning_rate 5e-4] [--num_ppo_epochs 2]
    python 05_train_ppo.py --curriculum easy_to_hard|hard_to_easy|sec|pass_rate [--curriculum.tau 0.4]
    python 05_train_ppo.py --diagnose DIR [--json FILE]

The intrinsic reward is read from the teacher's logits (utils/rewards/intrinsic.py); the task reward is paid
on the last token. The reference is the SFT policy. Greedy answers to validation items choose the best
checkpoint. In this stage save_steps, logging_steps and eval_steps count rollouts.

``--diagnose`` only reads: what is healthy in a training folder's log, of any method, and what is not.

What it reads and writes follows from its row in utils/frame/pipeline.py; settings, trainer and curves are in
utils/methods/ppo/.
"""

import sys

from utils.frame.command_line import wants_help
from utils.frame.stage import main
from utils.methods.stage import method_stage, run

STAGE = method_stage(
    "05_train_ppo.py",
    note="With --diagnose DIR [--json FILE]: say what is healthy in any method's training folder, and do "
    "nothing else.",
)

if __name__ == "__main__":
    if any(word.startswith("--diagnose") for word in sys.argv) and not wants_help(sys.argv):
        from utils.training.health.diagnose import diagnose_command

        sys.exit(diagnose_command(sys.argv[1:]))
    main(STAGE, run)
