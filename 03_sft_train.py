"""03: supervised fine-tuning on the training demonstrations, or distillation of the teacher.

    python 03_sft_train.py [--num_train_epochs 3] [--lora.enabled false]
    python 03_sft_train.py --objective distill [--divergence reverse_kl|forward_kl|jsd] [--start sft|base]
    python 03_sft_train.py --objective distill --on_policy_fraction 0.5 --num_generations 1 [--ce_weight 0.1]

Supervised: TRL's SFTTrainer; LoRA unless the model configuration switches it off; loss on completion tokens
only. Distillation (docs/distillation.md): the SFT policy towards the teacher, on the student's own samples
unless ``on_policy_fraction`` says otherwise; save_steps, logging_steps and eval_steps then count rollouts.
Greedy answers to validation items choose the best checkpoint.

What it reads and writes follows from its rows in utils/frame/pipeline.py; settings, trainers and curves are
in utils/methods/sft/ and utils/methods/distill/.
"""

from utils.frame.stage import main
from utils.methods.stage import method_stage, run

STAGE = method_stage("03_sft_train.py", choosing="train on demonstrations, or distil the teacher")

if __name__ == "__main__":
    main(STAGE, run)
