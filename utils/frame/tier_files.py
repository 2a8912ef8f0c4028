"""Files of tiers as a command line names them: where they are, and of which tier they are."""

from pathlib import Path

from utils.frame.config import read_yaml
from utils.frame.files import REPO_ROOT, UserError, shown

# Folder of shipped files, and keys that no other tier has at its top: how a file of a tier is known.
_KINDS = {
    "config": ("models", {"model", "lora", "generation", "validation", "vllm", "teacher_cache"}),
    "algo_config": (
        "algorithms",
        {
            "learning_rate",
            "num_rollouts",
            "kl_coef",
            "beta",
            "num_train_epochs",
            "loss_type",
            "num_ppo_epochs",
        },
    ),
    "dataset_config": ("datasets", {"dataset", "data_root", "max_train", "response_fields"}),
    "reward_config": ("rewards", {"weights", "intrinsic", "exact_match", "format_penalty"}),
}


def given_file(given: str) -> Path:
    """The file that an option names, from the working directory or else from the repository."""
    path = Path(given).expanduser()
    path = path if path.is_absolute() or path.exists() else REPO_ROOT / path
    return path if path.exists() else _short_name(path) or path


def _short_name(path: Path) -> Path | None:
    """The shipped model tier that a file is by the name of its model, None for none:
    config_microsoft_DialoGPT_medium.yaml is dialogpt-medium.yaml.
    """
    if not path.name.startswith("config_"):
        return None
    name = _letters(path.stem.removeprefix("config_"))
    shipped = sorted((REPO_ROOT / "configs" / "models").glob("*.yaml"), key=lambda file: -len(file.stem))
    return next((file for file in shipped if _letters(file.stem) in name), None)


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def check_kind(path: Path, flag: str) -> None:
    """Raise UserError where the file is not there, or is of another tier than ``--flag``, saying which."""
    data = read_yaml(path)
    own = _KINDS[flag][1] & data.keys()
    for other, (folder, typical) in _KINDS.items():
        shipped = path.resolve().parent == REPO_ROOT / "configs" / folder
        if other != flag and (shipped or (not own and typical & data.keys())):
            raise UserError(f"--{flag} {shown(path)}: this file is for --{other}; give it as that")
