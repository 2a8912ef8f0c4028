"""Write a configuration of the model tier for any causal language model, from its config.json alone.

    python inspect_model_architecture.py --model NAME_OR_FOLDER [--out FILE] [--overwrite] [--no_config]
    python inspect_model_architecture.py --all [--overwrite]

--all does every model that configs/models ships a file for; where the hub cannot be asked, it reads what the
file says. --no_config only prints. No weights are loaded or downloaded. Prints what was found, and how much
memory and time it may take, on the card that the file is for and on this machine (docs/models.md);
a file that exists is kept unless --overwrite is given.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.frame.credentials import load_environment, redact, redact_tracebacks
from utils.frame.files import UserError, resolve_path, shown, write_text

if TYPE_CHECKING:
    from utils.models.inspection.model_config import Known


def main(argv: list[str]) -> int:
    """Return the exit code: 0, or 2 where a model cannot be inspected."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], usage="\n".join(__doc__.splitlines()[2:4])
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="NAME_OR_FOLDER", help="a hub name, or a folder with a config.json")
    which.add_argument("--all", action="store_true", help="every model that configs/models ships a file for")
    parser.add_argument("--out", metavar="FILE", help="default: configs/models/<name>.yaml")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    parser.add_argument(
        *("--no_config", "--no-config"), action="store_true", help="print what was found, and write nothing"
    )
    arguments = parser.parse_args(argv)
    if arguments.all and arguments.out:
        parser.error("--out goes with --model")

    load_environment()
    from utils.models.inspection.model_config import FOLDER, KNOWN, file_stem

    if arguments.all:
        wanted = [(known.name, FOLDER / f"{stem}.yaml", known) for stem, known in KNOWN.items()]
    else:
        out = resolve_path(arguments.out or FOLDER / f"{file_stem(arguments.model)}.yaml")
        known = next((known for known in KNOWN.values() if known.name == arguments.model), None)
        wanted = [(arguments.model, out, known)]
    failed = 0
    for name, out, known in wanted:
        try:
            write_config(name, None if arguments.no_config else out, known, arguments.overwrite)
        except UserError as error:
            if arguments.all and out.exists() and not arguments.overwrite:
                print(f"{name}: {shipped_summary(out)}")
                continue
            failed += 1
            print(f"error: {redact(str(error))}", file=sys.stderr)
    return 2 if failed else 0


def shipped_summary(file: Path) -> str:
    """What a shipped file says of its model, once it has been read as a model tier."""
    from utils.frame.config import load_tier
    from utils.models.settings import ModelConfig

    said = load_tier(ModelConfig, file).metadata
    memory = ", ".join(f"{stage} {need:g} GB" for stage, need in said.memory_gb.items())
    return (
        f"{said.parameters:,} parameters; {memory or 'no estimate'} (by {shown(file)}; the hub was not asked)"
    )


def write_config(name: str, out: Path | None, known: "Known | None", overwrite: bool) -> None:
    """Inspect one model, say what it is and write its file (none where ``out`` is None). Raises UserError."""
    from utils.models.inspection.architecture import inspect_model
    from utils.models.inspection.device_at_hand import cost_here, device_at_hand
    from utils.models.inspection.model_config import DEFAULT_RANK, config_text, summary
    from utils.models.inspection.resources import estimate

    found = inspect_model(name)
    targets = ", ".join(f"{target} ({each.count})" for target, each in found.targets.items())
    print(f"{name}: {found.kind}, {found.parameters:,} parameters, {found.layers} layers; LoRA on {targets}")
    if found.untargeted:
        print(f"{name}: {found.untargeted:,} parameters lie in stacked tensors that LoRA does not adapt")
    if found.unshared:
        print(f"{name}: prompts are encoded once per completion: {found.unshared}")
    rank = known.rank if known else DEFAULT_RANK
    estimated = estimate(found, rank)
    print(f"{name}: {summary(estimated)}")
    form = estimated.load_in_4bit, estimated.gradient_checkpointing
    print(f"{name}: {cost_here(found, rank, device_at_hand(), *form)}")
    if out is None:
        return
    if out.exists() and not overwrite:
        print(f"{shown(out)} exists and is kept (--overwrite replaces it)")
        return
    write_text(out, config_text(found, known, estimated))
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    redact_tracebacks()
    sys.exit(main(sys.argv[1:]))
