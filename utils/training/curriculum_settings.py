"""Names and settings of curricula (configs/algorithms/*.yaml, section ``curriculum``). Light to import."""

CURRICULA = ("random", "easy_to_hard", "hard_to_easy", "sec", "pass_rate")
DEFAULT_CURRICULUM = "random"
