"""Build the embedded models from nothing: tokenizer, base student, teacher.

    python assets/build_models.py tokenizer student teacher

Each part is trained from a fixed seed and written below assets/ with a manifest; docs/embedded_models.md has
the figures. On one core each takes about a quarter to half of an hour.
"""

import argparse
import copy
import hashlib
import json
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from assets.embedded import student_model, train_tokenizer, widen  # noqa: E402
from assets.pretrain import (  # noqa: E402
    PretrainConfig,
    base_document,
    embedded_tables,
    framed_document,
    gold_document,
    pretrain,
)
from utils.frame.files import sha256_of, write_json, write_jsonl  # noqa: E402

ASSETS = ROOT / "assets"
STUDENT = PretrainConfig(steps=1400, batch_size=32, learning_rate=2e-3)
# Without it, SFT would have to teach three tokens that the student has never seen: their embeddings lie
# outside the adapter, and two samples in five would break the frame.
FRAME = PretrainConfig(steps=200, batch_size=32, learning_rate=5e-4, seed=2)
TEACHER = PretrainConfig(steps=400, batch_size=48, learning_rate=6e-4, seed=1)
LOG_EVERY = 25


def build_tokenizer() -> None:
    """Train the tokenizer on both kinds of documents and write it into both model folders."""
    rng, excluded = random.Random(0), embedded_tables()
    texts = [
        "".join(text for text, _ in document(rng, excluded))
        for document in (base_document, gold_document)
        for _ in range(3000)
    ]
    tokenizer = train_tokenizer(texts)
    for name in ("student", "teacher"):
        tokenizer.save_pretrained(ASSETS / name)
    print(f"tokenizer: {len(tokenizer)} tokens")


def train(name: str, model, phases: list[tuple], dtype: torch.dtype, checkpoint_every: int) -> None:
    """Pre-train ``model`` on each phase, (document, configuration), in turn.

    Writes its weights as ``dtype``, its curve (steps counted over all phases) and its manifest to
    assets/<name>.
    """
    folder = ASSETS / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, start, before = [], time.perf_counter(), 0
    for document, config in phases:
        window = []
        for row in pretrain(model, tokenizer, document, config):
            window.append(row["loss"])
            if row["step"] % LOG_EVERY == 0:
                rows.append({**row, "step": before + row["step"], "loss": sum(window) / len(window)})
                window = []
                print(
                    f"{name} step {rows[-1]['step']} loss {rows[-1]['loss']:.4f} "
                    f"{time.perf_counter() - start:.0f} s",
                    flush=True,
                )
            if row["step"] % checkpoint_every == 0 or row["step"] == config.steps:
                copy.deepcopy(model).to(dtype).save_pretrained(folder)
        before += config.steps
    write_jsonl(folder / "pretraining_curve.jsonl", rows)
    write_json(
        folder / "manifest.json",
        {
            "phases": [
                {
                    "documents": document.__name__,
                    "config": asdict(config),
                    "stream_sha256": stream_hash(document, config.seed),
                }
                for document, config in phases
            ],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "weights_sha256": sha256_of(folder / "model.safetensors"),
            "tokenizer_sha256": sha256_of(folder / "tokenizer.json"),
            "excluded_tables": len(embedded_tables()),
            "final_loss": rows[-1]["loss"],
            "torch": torch.__version__,
        },
    )


def stream_hash(document, seed: int) -> str:
    """What the model was trained on: the hash of the first 1,000 documents of its stream."""
    rng, excluded, digest = random.Random(seed), embedded_tables(), hashlib.sha256()
    for _ in range(1000):
        digest.update(json.dumps(document(rng, excluded)).encode())
    return digest.hexdigest()


def main() -> None:
    """Build the named parts, in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=["tokenizer", "student", "teacher"])
    parser.add_argument("--checkpoint_every", type=int, default=250, help="steps between saved weights")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part == "tokenizer":
            build_tokenizer()
        elif part == "student":
            model = student_model(AutoTokenizer.from_pretrained(ASSETS / "student"))
            phases = [(base_document, STUDENT), (framed_document, FRAME)]
            train("student", model, phases, torch.float32, arguments.checkpoint_every)
        else:
            base = AutoModelForCausalLM.from_pretrained(ASSETS / "student", dtype=torch.float32)
            teacher = widen(base, noise=0.02)
            # Half precision keeps the assets small; it is trained and run in float32.
            phases = [(gold_document, TEACHER)]
            train("teacher", teacher, phases, torch.float16, arguments.checkpoint_every)


if __name__ == "__main__":
    main()
