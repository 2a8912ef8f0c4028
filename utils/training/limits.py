"""Whether prompts and demonstrations fit the model's limits, said before anything is loaded.

Texts are counted by the model's own tokenizer file, without a chat template's tokens around them: what is
refused here cannot fit. Without such a file (a model that is on the hub) nothing is said; the stages count
again, with everything, once they have loaded it. Light to import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.data.records import Record, load_records
from utils.data.settings import DatasetConfig
from utils.frame.config import StageConfig
from utils.frame.files import UserError, first_line, read_json, shown
from utils.frame.pipeline import DEFAULT_CURRICULUM, Method
from utils.models.settings import ModelConfig, ModelSection
from utils.training.inputs import configured, prepared_split

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EMBEDDED = (ModelSection().name_or_path, ModelSection().teacher_name_or_path)
_ROWS = 64  # of the raw data: enough to see whether most prompts fit


def method_fits(method: Method, config: StageConfig, run_dir: Path) -> None:
    """Raise UserError where a method's stage could not train on the run's prepared records.

    Supervised fine-tuning leaves out what is too long, as long as that is not most of it; a method that
    samples its prompts needs all of them to fit. Nothing is said of prompts before 01 has run.
    """
    curriculum = getattr(config.options, "curriculum", DEFAULT_CURRICULUM)
    if getattr(config.algo, "group_filter", "none") != "none" and curriculum != DEFAULT_CURRICULUM:
        raise UserError(
            f"algo.group_filter {config.algo.group_filter} replaces groups by those of the next prompts in "
            f"random order, and --curriculum {curriculum} chooses prompts itself: leave one of the two out"
        )
    if getattr(config.algo, "divergence", "") == "sampled_kl":
        _samples_of_the_student(config.model)
    path = prepared_split(run_dir, "train")
    if method.from_pairs or method.from_candidates or not path.is_file():
        return
    records = load_records(path)
    tokenizer = tokenizer_of(config.model) if records else None
    if tokenizer is None:
        return
    if method.samples:
        prompts = _counts(tokenizer, [record.input_text for record in records])
        _refuse(config.model, records, prompts, needed=len(records))
    else:
        demonstrations_fit(config, records)


def _samples_of_the_student(model: ModelConfig) -> None:
    """Raise UserError where sampling draws from another distribution than the student's own: the mean of its
    log-ratio to the teacher over such samples is not their KL.
    """
    sampling = model.generation
    if (sampling.temperature, sampling.top_p, sampling.top_k) != (1, 1, 0):
        raise UserError(
            "algo.divergence sampled_kl needs samples of the student's own distribution: set "
            "model.generation.temperature 1, model.generation.top_p 1 and model.generation.top_k 0, or "
            "another algo.divergence"
        )


def demonstrations_fit(config: StageConfig, records: Sequence[Record]) -> None:
    """Raise UserError where most of the demonstrations exceed the limit on prompts or on completions."""
    prompts_fit(config, records)
    tokenizer, limit = tokenizer_of(config.model), config.model.generation.max_new_tokens
    counts = sorted(_counts(tokenizer, [record.target_text for record in records])) if tokenizer else []
    too_long = sum(count > limit for count in counts)
    if too_long * 2 > len(counts):
        raise UserError(
            f"{too_long} of {len(counts)} demonstrations are longer than generation.max_new_tokens ({limit}; "
            f"half have {counts[len(counts) // 2]} tokens or more): "
            + _remedies(config.model, records[0].dataset, "--max_new_tokens", counts[len(counts) // 2])
        )


def prompts_fit(config: StageConfig, records: Sequence[Record]) -> None:
    """Raise UserError where most of the prompts exceed ``model.max_prompt_length``."""
    tokenizer = tokenizer_of(config.model) if records else None
    if tokenizer is not None:
        prompts = _counts(tokenizer, [record.input_text for record in records])
        _refuse(config.model, records, prompts, needed=len(records) // 2)


def split_fits(split: Callable[[StageConfig], str], config: StageConfig, run_dir: Path) -> None:
    """`prompts_fit` of the split that a stage reads, once 01 has run."""
    path = prepared_split(run_dir, split(config))
    if path.is_file():
        prompts_fit(config, load_records(path))


def raw_data_fit(dataset: DatasetConfig, config: StageConfig, demonstrations: bool) -> None:
    """`demonstrations_fit` or `prompts_fit` of the first rows of the raw data, before 01 has run; nothing is
    said of data that cannot be read.
    """
    from utils.data.sources import raw_files, read_split

    if dataset.dataset == "sample" or dataset.reader:  # made for the default; read by the user's own code
        return
    files = {split: path for split, path in raw_files(dataset).items() if path.is_file()}
    if files:
        split = min(files, key=lambda name: files[name].stat().st_size)
        rows = read_split(dataset, split, files[split]).usable[:_ROWS]
        records = [dataset.form.record(row, dataset)[0] for row in rows]
        (demonstrations_fit if demonstrations else prompts_fit)(config, records)


def tokenizer_of(model: ModelConfig) -> Tokenizer | None:
    """The tokenizer file of the configured policy; None where it is not on this machine."""
    folder = configured(model.model.name_or_path)
    file = folder / "tokenizer.json" if isinstance(folder, Path) else None
    if file is None or not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library knows no other
        raise UserError(f"{shown(file)}: no tokenizer could be loaded ({first_line(error)})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _counts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    return [len(each.ids) for each in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _refuse(model: ModelConfig, records: Sequence[Record], prompts: Sequence[int], needed: int) -> None:
    """Raise UserError where fewer than ``needed`` prompts fit, with the longest and what to change."""
    limit = model.model.max_prompt_length
    too_long = sum(count > limit for count in prompts)
    if len(prompts) - too_long >= needed:
        return
    longest = max(range(len(prompts)), key=prompts.__getitem__)
    raise UserError(
        f"{too_long} of {len(records)} prompts are longer than model.max_prompt_length ({limit}; "
        f"{records[longest].id} has {prompts[longest]} tokens): "
        + _remedies(model, records[0].dataset, "--max_prompt_length", prompts[longest])
        + "; or lower --max_input_tokens in 01 (FinQA: or --context retrieved) and prepare again"
    )


def _remedies(model: ModelConfig, dataset: str, option: str, tokens: int) -> str:
    """What to change: the model, or the limit where the model has room for more."""
    name, folder, found = model.model.name_or_path, configured(model.model.name_or_path), []
    if name in EMBEDDED and dataset != "sample":
        found.append(
            f"the embedded model speaks only its own data set's language, so give --model smollm2-135m for "
            f"{dataset} (./download.sh model smollm2-135m)"
        )
    local = isinstance(folder, Path)
    config = read_json(folder / "config.json") if local else {}
    positions = config.get("max_position_embeddings") if isinstance(config, dict) else None
    if not isinstance(positions, int) or tokens < positions:
        found.append(f"raise {option} to {tokens} or more")
    return "; or ".join(found) or "give a model with more positions"
