"""The TRL release whose trainers this project extends."""

import importlib.metadata

from utils.frame.files import UserError

TRL_SERIES = "1.16"


def check_trl_version() -> None:
    """Raise UserError unless the installed TRL is of the series whose internals are overridden here."""
    version = importlib.metadata.version("trl")
    if version.split(".")[:2] != TRL_SERIES.split("."):
        raise UserError(
            f"TRL {version} is installed but the trainers here extend TRL {TRL_SERIES}.x: "
            f'pip install "trl=={TRL_SERIES}.*"'
        )
