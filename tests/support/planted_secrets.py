"""Secrets for every place that one can be in, and a search for them."""

import json
from pathlib import Path

# One for each place that a secret can be in. The third is spelled otherwise in JSON and in an address.
ENVIRONMENT = "planted_environment_0123456789"
DOTENV = "planted_dotenv_0123456789"
SPELLED = 'planted "quoted" & spelled /0123456789'
HOME_FILE = "planted_home_file_0123456789"
HUB_FILE = "planted_hub_file_0123456789"
HUB_STORED = "planted_hub_stored_0123456789"
NETRC = "planted_netrc_0123456789"
SHAPED = "hf_" + "aB3" * 11
PLANTED = (ENVIRONMENT, DOTENV, SPELLED, HOME_FILE, HUB_FILE, HUB_STORED, NETRC, SHAPED)
EVERY = " and ".join(PLANTED)
# The variables that say where one is looked for.
NAMES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HOME",
    "NETRC",
    "BELLMAN_ENV",
    "MY_API_KEY",
)


def plant(home: Path) -> dict[str, str]:
    """Plant the secrets below ``home``; returns the variables that point there."""
    (home / "env").write_text(
        f"# a comment\nHF_TOKEN={DOTENV}\nMY_PASSWORD='{SPELLED}'\nPLAIN=visible_setting\n"
    )
    (home / ".huggingface_token").write_text(HOME_FILE + "\n")
    hub = home / ".cache" / "huggingface"
    hub.mkdir(parents=True)
    (hub / "token").write_text(HUB_FILE)
    (hub / "stored_tokens").write_text(f"[mine]\nhf_token = {HUB_STORED}\n")
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {NETRC}\n")
    return {"HOME": str(home), "BELLMAN_ENV": str(home / "env"), "MY_API_KEY": ENVIRONMENT}


def where_planted(folder: Path) -> list[str]:
    """The files below ``folder``, hidden ones included, that hold a secret in name or content, and which."""
    spellings = {text.encode() for secret in PLANTED for text in (secret, json.dumps(secret)[1:-1])}
    found = []
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        found += [f"{file}: {text!r}" for text in spellings if text in content or text in bytes(file)]
    return found
