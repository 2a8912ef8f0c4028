"""03: supervised fine-tuning on demonstrations or on right candidates, or distillation of the teacher.

    python 03_sft_train.py [--num_train_epochs 3] [--lora.enabled false]
    python 03_sft_train.py --objective distill [--divergence reverse_kl|forward_kl|jsd] [--start sft|base]
    python 03_sft_train.py --objective distill --on_policy_fraction 0.5 --num_generations 1 [--ce_weight 0.1]
    python 03_sft_train.py --objective opd|exopd|vopd|reopold
    python 03_sft_train.py --objective rft [--max_per_prompt 4]

Supervised: TRL's SFTTrainer; LoRA unless the model configuration switches it off; loss on completion tokens
only. Distillation (docs/distillation.md): the SFT policy towards the teacher, on the student's own samples
unless ``on_policy_fraction`` says otherwise; save_steps, logging_steps and eval_steps then count rollouts.
Its presets (docs/methods.md): by policy gradient on the sampled tokens. Rejection-sampling fine-tuning: as
supervised, on the right ones of 04's candidates, as they were sampled. Greedy answers to validation items
choose the best checkpoint.

What it reads and writes follows from its rows in utils/frame/pipeline.py; settings, trainers and curves are
in utils/methods/sft/ and utils/methods/distill/.
"""

from utils.frame.stage import main
from utils.methods.stage import method_stage, run

STAGE = method_stage(
    "03_sft_train.py",
    choosing="train on demonstrations, distil the teacher, or train on the right ones of 04's candidates",
)

if __name__ == "__main__":
    main(STAGE, run)
