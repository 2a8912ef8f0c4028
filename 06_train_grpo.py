"""06: group-relative policy optimisation (GRPO) of the SFT policy.

    python 06_train_grpo.py [--reward combined|task|intrinsic] [--learning_rate 5e-4] [--num_iterations 2]
    python 06_train_grpo.py --curriculum easy_to_hard|hard_to_easy|sec|pass_rate [--curriculum.tau 0.4]

TRL's GRPOTrainer with shared prefixes (utils/rollouts/shared_prefix_trainer.py). The reference is the SFT
policy. Greedy answers to validation items choose the best checkpoint. In this stage save_steps, logging_steps
and eval_steps count rollouts.

What it reads and writes follows from its row in utils/frame/pipeline.py; settings, trainer and curves are in
utils/methods/grpo/.
"""

from utils.frame.stage import main
from utils.methods.stage import method_stage, run

STAGE = method_stage("06_train_grpo.py")

if __name__ == "__main__":
    main(STAGE, run)
