"""09: direct preference optimisation (DPO) of the SFT policy on the pairs of 08.

    python 09_train_dpo.py [--reward combined|task|intrinsic] [--beta 0.1] [--loss_type ipo]

TRL's DPOTrainer (utils/methods/dpo/trainer.py). The reference is the SFT policy, whose log-probabilities of
the pairs are computed once. Greedy answers to validation items choose the best checkpoint, as in every
method.

What it reads and writes follows from its row in utils/frame/pipeline.py; settings, trainer and curves are in
utils/methods/dpo/.
"""

from utils.frame.stage import main
from utils.methods.stage import method_stage, run

STAGE = method_stage("09_train_dpo.py")

if __name__ == "__main__":
    main(STAGE, run)
