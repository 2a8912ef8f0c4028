"""07: REINFORCE leave-one-out (RLOO) of the SFT policy.

    python 07_train_rloo.py [--reward combined|task|intrinsic] [--baseline_type loo|mean|none]
    python 07_train_rloo.py --curriculum easy_to_hard|hard_to_easy|sec|pass_rate [--curriculum.tau 0.4]

TRL's RLOOTrainer with shared prefixes (utils/rollouts/shared_prefix_trainer.py). The reference is the SFT
policy, and the KL to it is part of the reward. Greedy answers to validation items choose the best checkpoint.
In this stage save_steps, logging_steps and eval_steps count rollouts.

What it reads and writes follows from its row in utils/frame/pipeline.py; settings, trainer and curves are in
utils/methods/rloo/.
"""

from utils.frame.stage import main
from utils.methods.stage import method_stage, run

STAGE = method_stage("07_train_rloo.py")

if __name__ == "__main__":
    main(STAGE, run)
