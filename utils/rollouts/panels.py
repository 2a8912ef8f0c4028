"""The curves that methods share: titles of panels -> what they draw of the training log."""

REWARDS = {
    "mean reward of the rollout": ["reward", "train_accuracy"],
    "reward components": [
        "rewards/exact_match/mean",
        "rewards/numeric_match/mean",
        "rewards/program_partial/mean",
        "rewards/format_penalty/mean",
        "rewards/reasoning/mean",
        "rewards/intrinsic/mean",
        "rewards/overlong/mean",
    ],
}
ADAPTED = {"adaptive weights": ["weights/intrinsic", "weights/reasoning"]}
VALIDATION = {"validation": ["val_reward", "val_accuracy", "val_format_valid"]}
LENGTH = {"completion length (tokens)": ["completions/mean_length", "val_length"]}
CUT_OFF = {"share of completions cut off": ["completions/clipped_ratio", "val_truncated"]}
PHANTOM = {
    "share of the advantage in groups all right or all wrong": ["advantages/phantom"],
    "share of groups discarded": ["groups_discarded"],
}
GRADIENT = {"gradient norm": ["grad_norm"]}
