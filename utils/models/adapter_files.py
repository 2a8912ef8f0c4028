"""What an adapter's folder says of the model below it. Light to import: the driver asks every stage."""

from pathlib import Path

from utils.frame.files import UserError, read_json, shown


def base_of_adapter(folder: Path) -> str | None:
    """The base model that a PEFT adapter names, as it names it; None for a folder without an adapter.

    Raises UserError where its configuration is damaged, or names none.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base or "\0" in base:
        raise UserError(f"{shown(path)}: base_model_name_or_path must name the adapter's base model")
    return base
