"""The command line every stage shares: `--key value` for frame options, stage options and any tier key."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, get_origin

from utils.frame.config import PathsSection, StageConfig, absolute_if_local, load_tier, read_yaml
from utils.frame.files import REPO_ROOT, UserError, shown
from utils.frame.pipeline import METHODS
from utils.frame.synonyms import (
    ELSEWHERE,
    FRAME_SYNONYMS,
    REFUSED,
    RESUMING,
    SWITCHES,
    Key,
    having,
    meant,
)
from utils.frame.tier_files import check_kind, given_file
from utils.frame.typed_settings import (
    Text,
    bounds_in_words,
    build,
    field_types,
    leaf_keys,
    setting,
    suggestion,
    type_name,
)

MODEL_TIERS = "configs/models"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
TIER_FLAGS = {
    "model": "config",
    "algo": "algo_config",
    "dataset": "dataset_config",
    "reward": "reward_config",
}


@dataclass
class FrameOptions:
    """Options every stage has. A tier's file that a stage has no use for is only looked for."""

    run_id: str = setting("run_001", "name of the run; its folder below the outputs folder")
    config: str | None = setting(
        None, "model tier (YAML); a stage without models reads its paths section alone"
    )
    model: str | None = setting(
        None, "a shipped tier by its name (smollm2-135m), or the policy as a folder or hub name"
    )
    algo_config: str | None = setting(None, "algorithm tier (YAML)")
    dataset_config: str | None = setting(None, "dataset tier (YAML)")
    reward_config: str | None = setting(None, "reward tier (YAML)")
    output_dir: str | None = setting(None, "the stage's own folder, such as outputs/run_002/02_rewards")
    outputs_root: str | None = setting(
        None, "folder that holds the runs (default: paths.outputs of --config)"
    )
    seed: int = setting(0, "seed of everything random in the stage")
    quick_test: bool = setting(False, "a small version of the stage, in seconds")
    overwrite: bool = setting(False, "redo a finished stage; what it wrote is deleted once that has finished")
    strict_code: bool = setting(False, "refuse to read what other code than there is now wrote")

    def validate(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.run_id):
            raise ValueError(f'run_id must be letters, digits, ".", "_" and "-", found "{self.run_id}"')
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and 2**32 - 1, found {self.seed}")


_SHARED = ("config", "model", "dataset_config", "reward_config", "seed", "quick_test")  # by a run's stages


@dataclass
class Arguments:
    """A parsed command line: the frame's options, which of them were typed, and overrides by tier (or
    "options") and key. ``resume`` is what a user asked to resume from; a stage does so by itself. ``shared``
    is what was typed for all stages of a run, by option: of the frame, and of each tier.
    """

    frame: FrameOptions
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    typed: frozenset[str] = frozenset()
    resume: str = ""
    shared: dict[str, dict[str, Any]] = field(default_factory=dict)


def wants_help(argv: list[str]) -> bool:
    """Tell whether the command line asks for help."""
    return any(word in ("-h", "--help") for word in argv)


def parse(stage: Any, argv: list[str]) -> Arguments:
    """Parse a stage's command line. Raises UserError for an unknown, ambiguous or incomplete option."""
    keys = known_keys(stage)
    frame, overrides = dict[str, Any](), dict[str, dict[str, Any]]()
    shared: dict[str, dict[str, Any]] = {"frame": {}, "model": {}, "dataset": {}, "reward": {}}
    resume = ""
    for name, value in _pairs(argv, keys, stage.plain):
        name = FRAME_SYNONYMS.get(name, name)
        if name in field_types(FrameOptions):
            frame[name] = value
            if name in _SHARED:
                shared["frame"][name] = value
        elif name in RESUMING:
            resume = value.value if isinstance(value, Text) else str(value)
        else:
            for owner, key, given in located(name, value, keys):
                overrides.setdefault(owner, {})[key] = given
                if owner in shared:
                    shared[owner][f"{owner}.{key}"] = given
    options = build(FrameOptions, frame, "command line")
    arguments = Arguments(options, overrides, frozenset(frame), resume, shared)
    _apply_model(stage, arguments)
    if options.quick_test:
        _apply_quick(stage, arguments, keys)
    return arguments


def _apply_model(stage: Any, arguments: Arguments) -> None:
    """Put --model where it belongs: a shipped tier's name is its file; a folder or hub name is the policy,
    and without a tier or teacher of the user's its own teacher (the default one has another vocabulary).
    """
    frame, name = arguments.frame, arguments.frame.model
    if name is None:
        return
    shipped = sorted(file.stem for file in (REPO_ROOT / MODEL_TIERS).glob("*.yaml"))
    if name.lower() in shipped:
        if frame.config is not None:
            raise UserError(f"--model {name} is a tier, and so is --config {frame.config}: give one of them")
        frame.config = f"{MODEL_TIERS}/{name.lower()}.yaml"
        return
    near = suggestion(name, shipped)
    slip = "/" not in name and near  # no hub name of today, and almost a tier's
    if not Path(name).expanduser().is_dir() and (slip or not _HUB_NAME.fullmatch(name)):
        raise UserError(f'--model: "{name}" is no shipped tier, no folder and no hub name{near}')
    if "model" in stage.tiers:
        given = arguments.overrides.setdefault("model", {})
        given.setdefault("model.name_or_path", Text(name))
        if frame.config is None:
            given.setdefault("model.teacher_name_or_path", Text(name))


def _apply_quick(stage: Any, arguments: Arguments, keys: dict[str, Key]) -> None:
    """Put the stage's quick-test values under what the user typed, which wins."""
    for name, value in stage.quick.items():
        key = keys[name]
        arguments.overrides.setdefault(key.owner, {}).setdefault(key.name, value)


def known_keys(stage: Any) -> dict[str, Key]:
    """Return full dotted key -> what it is; a stage's own options have no prefix."""
    tiers = [("", "options", stage.options)]
    tiers += [(f"{tier}.", tier, cls) for tier, (cls, _) in stage.tiers.items()]
    return {
        prefix + name: Key(owner, name, hint, spec.metadata.get("help", ""))
        for prefix, owner, cls in tiers
        for name, (hint, spec) in leaf_keys(cls).items()
    }


def _pairs(argv: list[str], keys: dict[str, Key], plain: str) -> list[tuple[str, Any]]:
    """Split `--key value`, `--key=value`, `--list a b c` and bare switches into (key, text) pairs.

    ``plain`` is the option that words without one belong to; "" where there is none.
    """
    pairs: list[tuple[str, Any]] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if plain and not word.startswith("--"):
            pairs.append((plain, _entries([word, *_until_option(words)])))
            continue
        if not word.startswith("--") or word == "--":
            raise UserError(f'unexpected argument "{word}": options are written --key value (see --help)')
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        if not equals:
            has_value = bool(words) and not words[0].startswith("--")
            if has_value and _is_list(name, keys) and not words[0].startswith("["):
                pairs.append((name, _entries(_until_option(words))))
                continue
            if _is_switch(name, keys) and not (has_value and words[0].lower() in ("true", "false")):
                text = "true"
            elif has_value:
                text = words.pop(0)
            elif name in RESUMING or name in REFUSED:
                text = "true"
            else:
                raise UserError(f"option --{name} needs a value (see --help)")
        pairs.append((name, Text(text)))
    return pairs


def _until_option(words: list[str]) -> list[str]:
    """Take the words up to the next option off the front."""
    count = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    taken = words[:count]
    del words[:count]
    return taken


def _entries(words: list[str]) -> list[Text]:
    """The entries of a list that is typed as words, or as words with commas in them; a file's name may have
    one.
    """
    parts = (part for word in words for part in ([word] if Path(word).exists() else word.split(",")))
    return [Text(part.strip()) for part in parts if part.strip()]


def _is_list(name: str, keys: dict[str, Key]) -> bool:
    found = meant(name, keys) or having(name, keys)
    return bool(found) and all(get_origin(keys[key].hint) is list for key in found)


def _is_switch(name: str, keys: dict[str, Key]) -> bool:
    frame = field_types(FrameOptions)
    name = FRAME_SYNONYMS.get(name, name)
    if name in frame:
        return frame[name] is bool
    found = meant(name, keys) or having(name, keys)
    return name in SWITCHES or any(keys[key].hint is bool for key in found)


def located(name: str, value: Any, keys: dict[str, Key]) -> list[tuple[str, str, Any]]:
    """Return (owner, key, value) of what an option sets: its full dotted key, any ending of it that is
    unique, or what a name of elsewhere stands for. [] where that says nothing (``--fp16 false``).

    Raises UserError for a name that is unknown, has several homes, or would mean something else here.
    """
    if name in SWITCHES and name not in keys:
        return _switched(name, value, keys)
    typed = value.value if isinstance(value, Text) else None
    found = [name] if name in keys else meant(name, keys, typed) or having(name, keys)
    if len(found) == 1:
        key = keys[found[0]]
        return [(key.owner, key.name, value)]
    if found:
        homes = " or ".join(f"--{key} ({keys[key].help})" for key in sorted(found))
        raise UserError(f"option --{name} is ambiguous: write {homes}")
    # An entry of a mapping-valued key, e.g. --reward.weights.exact.
    mapping, _, entry = name.rpartition(".")
    found = [key for key in having(mapping, keys) if mapping and _holds_mapping(keys[key].hint)]
    if len(found) == 1:
        key = keys[found[0]]
        return [(key.owner, f"{key.name}.{entry}", value)]
    valid = [f"--{key}" for key in (*keys, *field_types(FrameOptions))]
    if reason := REFUSED.get(name) or ELSEWHERE.get(name):
        raise UserError(f"option --{name} is not taken: {reason}")
    raise UserError(f"unknown option --{name}{suggestion('--' + name, valid) or ' (see --help)'}")


def _switched(name: str, value: Text, keys: dict[str, Key]) -> list[tuple[str, str, Text]]:
    """What a switch of SWITCHES sets."""
    if value.value.lower() not in ("true", "false"):
        raise UserError(f'--{name} is true or false, found "{value.value}"')
    if value.value.lower() == "false":
        return []
    for target, text in SWITCHES[name]:
        if found := having(target, keys):
            key = keys[found[0]]
            return [(key.owner, key.name, Text(text))]
    return []


def _holds_mapping(hint: Any) -> bool:
    return hint is dict or get_origin(hint) is dict


def tier_file(stage: Any, tier: str, arguments: Arguments) -> Path:
    """Return the YAML file of a tier: the one on the command line, else the stage's default, or the one that
    the tier's class finds for what was typed (``file_for``).
    """
    given = getattr(arguments.frame, TIER_FLAGS[tier])
    if given is not None:
        return given_file(given)
    cls, default = stage.tiers[tier]
    chosen = cls.file_for(arguments.overrides.get(tier, {})) if hasattr(cls, "file_for") else None
    return REPO_ROOT / (chosen or default)


def resolve(stage: Any, arguments: Arguments) -> StageConfig:
    """Load all tiers and the stage's options. Raises UserError naming file, key and nearest valid key."""
    frame, overrides = arguments.frame, arguments.overrides
    for flag in TIER_FLAGS.values():
        if (given := getattr(frame, flag)) is not None:
            check_kind(given_file(given), flag)
    _apply_older(stage, arguments)
    tiers = {
        tier: load_tier(cls, tier_file(stage, tier, arguments), overrides.get(tier))
        for tier, (cls, _) in stage.tiers.items()
    }
    paths = {name for name, (_, field) in leaf_keys(stage.options).items() if field.metadata.get("path")}
    given = {
        name: absolute_if_local(value) if name in paths else value
        for name, value in overrides.get("options", {}).items()
    }
    options = build(stage.options, given, "command line")
    return StageConfig(**tiers, options=options, seed=frame.seed, quick_test=frame.quick_test)


def _apply_older(stage: Any, arguments: Arguments) -> None:
    """Give 03 what a model tier of an older form says of supervised fine-tuning, under what was typed."""
    frame = arguments.frame
    if stage.folder != METHODS["sft"].folder or frame.config is None or frame.algo_config is not None:
        return
    cls, keys = stage.tiers["model"][0], known_keys(stage)
    for name, value in getattr(cls, "supervised", lambda data: {})(
        read_yaml(given_file(frame.config))
    ).items():
        found = [f"algo.{name}"] if f"algo.{name}" in keys else meant(name, keys)
        if len(found) == 1:
            arguments.overrides.setdefault("algo", {}).setdefault(keys[found[0]].name, value)


def output_root(stage: Any, frame: FrameOptions, config: StageConfig) -> Path:
    """Return the folder that holds the runs: --outputs_root, else `paths.outputs` of the model tier."""
    if frame.outputs_root is not None:
        return Path(frame.outputs_root).expanduser().absolute()
    if config.model is not None:
        outputs = config.model.paths.outputs
    elif frame.config is not None:
        # A stage without a model still writes where the run's other stages do.
        file = given_file(frame.config)
        outputs = build(PathsSection, read_yaml(file).get("paths") or {}, shown(file), "paths.").outputs
    else:
        outputs = PathsSection().outputs
    return REPO_ROOT / Path(outputs).expanduser()


# ---------------------------------------------------------------------------------------------- help


def help_text(stage: Any, script: str, choice: Any = None) -> str:
    """Return `--help`: what the stage reads and writes, then every option and tier key with its default.

    `choice` is the option that makes the script another stage, whose keys `--help` shows beside it.
    """
    blocks = [
        f"usage: python {script} [--key value ...]",
        stage.summary,
        f"reads:  {stage.reads}\nwrites: {stage.writes}",
    ]
    if choice is not None:
        named = " | ".join([choice.default, *choice.others])
        note = f"{choice.help} [{named}] (default: {choice.default}; with --help: the options of that one)"
        blocks.append(f"what to do:\n  --{choice.option}  {note}")
    frame = FrameOptions()
    for tier, (_, default) in stage.tiers.items():
        setattr(frame, TIER_FLAGS[tier], default)
    blocks.append(_block("options of every stage", "", frame))
    if stage.quick:
        small = ", ".join(f"--{key} {plain(value)}" for key, value in stage.quick.items())
        blocks.append(f"what --quick_test sets, where nothing else is typed:\n  {small}")
    if leaf_keys(stage.options):
        blocks.append(_block("options of this stage", "", stage.options()))
    for tier, (cls, default) in stage.tiers.items():
        file = REPO_ROOT / default
        values = load_tier(cls, file if file.exists() else None)
        blocks.append(_block(f"{tier} tier, defaults from {default}", f"{tier}.", values))
    blocks.append(
        "A key may be shortened to any ending that is unique: --learning_rate for --algo.learning_rate.\n"
        "Names that settings have elsewhere (epochs, lr, clip_range, …) are listed in docs/commands.md.\n"
        "Exit codes: 0 done or up to date, 1 failed, 2 a mistake to mend, 130 interrupted."
    )
    return "\n\n".join(blocks) + "\n"


def _block(title: str, prefix: str, values: Any) -> str:
    rows = [
        (f"--{prefix}{key}", f"{note} (default: {plain(value)})")
        for key, note, value in describe_keys(values)
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"{title}:", *(f"  {name:<{width}}  {note}" for name, note in rows)])


def describe_keys(values: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (dotted key, what it is with type and bounds, value) for every value of a dataclass tree."""
    for key, (hint, spec) in leaf_keys(type(values)).items():
        kind = ", ".join(filter(None, [type_name(hint), bounds_in_words(spec)]))
        yield key, f"{spec.metadata.get('help', '')} [{kind}]", attrgetter(key)(values)


def plain(value: Any) -> str:
    """Return a value as YAML would write it on one line."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(plain(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) + "}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    return str(value) if value != "" else '""'
