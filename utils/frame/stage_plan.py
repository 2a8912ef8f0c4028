"""What a stage is and what running it would do: skip, resume or start, with its inputs checked first."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from utils.frame import manifest as manifests
from utils.frame.agreement import check_chain, check_reward, stage_folder
from utils.frame.command_line import Arguments, output_root, parse, resolve
from utils.frame.config import StageConfig
from utils.frame.files import REPO_ROOT, UserError, read_json, resolve_path, shown
from utils.frame.pipeline import NESTED, row_of
from utils.frame.repair_command import command_for


@dataclass(frozen=True)
class NoOptions:
    """A stage without options of its own."""


@dataclass(frozen=True)
class Choice:
    """An option by which a script is one of several stages, each with a folder and tiers of its own.

    `default` is the option's value for the stage that has the choice, `others` the stages of all other
    values. It is no part of a stage's configuration: the stage's folder says which was chosen.
    """

    option: str
    help: str
    default: str
    others: dict[str, "Stage"]


@dataclass(frozen=True)
class Stage:
    """What a numbered script is: its place in the pipeline, its configuration and what it reads.

    `tiers` maps model, algo, dataset or reward to (dataclass, default YAML); `options` is the dataclass of
    the stage's own options; `inputs(config, run_dir)` names the paths it reads, without heavy imports;
    `quick` holds the values of `--quick_test` by dotted key; `variant` is the folder's suffix (10: its
    sub-folder); `choice` is the option that makes the script another stage; `several_processes`: it can run
    in several processes at once, as `accelerate launch` starts them (docs/distributed.md); `plain` is the
    option that words without one belong to; `fits(config, run_dir)` raises UserError for what is bound to
    fail later, once the inputs are there and before anything is loaded or written; `judges_anew` names inputs
    of which it does not matter what they rest on.
    """

    number: str
    folder: str
    summary: str
    reads: str
    writes: str
    tiers: dict[str, tuple[type, str]] = field(default_factory=dict)
    options: type = NoOptions
    inputs: Callable[[StageConfig, Path], dict[str, Path]] = lambda config, run_dir: {}
    quick: dict[str, Any] = field(default_factory=dict)
    variant: Callable[[StageConfig], str] | str = ""
    judges_anew: tuple[str, ...] = ()
    choice: Choice | None = None
    several_processes: bool = False
    plain: str = ""
    fits: Callable[[StageConfig, Path], None] = lambda config, run_dir: None

    def chosen(self, argv: Sequence[str]) -> tuple["Stage", list[str]]:
        """Return the stage that a command line asks for, and the command line without the choice.

        Raises UserError where the choice has no value, or an unknown one.
        """
        if self.choice is None:
            return self, list(argv)
        switch, value, rest = f"--{self.choice.option}", self.choice.default, []
        words = iter(argv)
        for word in words:
            name, equals, text = word.partition("=")
            if name == switch:
                value = text if equals else next(words, "")
            else:
                rest.append(word)
        stages = {self.choice.default: self, **self.choice.others}
        if value not in stages:
            raise UserError(f'{switch} must be one of {", ".join(stages)}, found "{value}"')
        return stages[value], rest

    def variant_of(self, config: StageConfig) -> str:
        """Return the variant's name, "" for the plain stage."""
        return self.variant(config) if callable(self.variant) else self.variant

    def out_dir(self, config: StageConfig, run_dir: Path) -> Path:
        """Return the stage's folder in a run."""
        variant = self.variant_of(config)
        if self.folder in NESTED:
            return run_dir / self.folder / variant
        return run_dir / (f"{self.folder}_{variant}" if variant else self.folder)


class Prepared(NamedTuple):
    """A stage looked at but not run; `status` is missing, up_to_date, interrupted or "stale: <why>"."""

    config: StageConfig
    run_dir: Path
    out: Path
    status: str

    @property
    def name(self) -> str:
        """The stage folder's path in the run, as `Plan.name`."""
        return self.out.relative_to(self.run_dir).as_posix()


@dataclass
class Plan:
    """One execution of a stage, resolved; `check_inputs` fills in `inputs` and `identity`."""

    stage: Stage
    arguments: Arguments
    config: StageConfig
    run_dir: Path
    out: Path
    inputs: dict[str, Path] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stage folder's path in the run, e.g. "03_sft" or "10_evaluation/grpo"."""
        return self.out.relative_to(self.run_dir).as_posix()


def load_script(name: str) -> ModuleType:
    """Import a numbered script, e.g. "03_sft_train.py" (a name that no import statement takes)."""
    module_name = f"stage_{Path(name).stem}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, REPO_ROOT / name)
        assert spec is not None and spec.loader is not None  # a .py file has both
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their module up by name while it is being executed.
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]


def make_plan(stage: Stage, argv: list[str]) -> Plan:
    """Resolve a command line. Raises UserError for a mistake in it or in a configuration file."""
    stage, argv = stage.chosen(argv)
    arguments = parse(stage, argv)
    config = resolve(stage, arguments)
    if arguments.frame.output_dir is not None:
        run_dir = _run_of_own_folder(stage, arguments, config)
    else:
        run_dir = output_root(stage, arguments.frame, config) / arguments.frame.run_id
    out = stage.out_dir(config, run_dir)
    _check_resume(arguments.resume, out)
    return Plan(stage, arguments, config, run_dir, out)


def _run_of_own_folder(stage: Stage, arguments: Arguments, config: StageConfig) -> Path:
    """The run of --output_dir, which is the stage's own folder; the run's id and the folder that holds the
    runs are read off it. Raises UserError for any other folder, saying what to type.
    """
    frame, given = arguments.frame, Path(str(arguments.frame.output_dir)).expanduser().absolute()
    nested = stage.folder in NESTED and given.name != stage.folder
    run_dir = given.parent.parent if nested else given.parent
    row = row_of(given.parent.name if nested else given.name)
    if row is None or row.folder != stage.folder:
        raise UserError(
            f"--output_dir {shown(given)}: this option is the stage's own folder, such as "
            f"outputs/{frame.run_id}/{stage.folder}; for the folder that holds the runs give --outputs_root"
        )
    if next(run_dir.glob(f"*/{manifests.RUN_MANIFEST}"), None):
        raise UserError(
            f"--output_dir {shown(given)}: {shown(run_dir)} holds runs and is none itself; give "
            f"{shown(run_dir)}/{frame.run_id}/{stage.folder}"
        )
    for option, value in (("run_id", run_dir.name), ("outputs_root", str(run_dir.parent))):
        typed = str(getattr(frame, option))
        typed = str(Path(typed).expanduser().absolute()) if option == "outputs_root" else typed
        if option in arguments.typed and typed != value:
            raise UserError(
                f"--output_dir {shown(given)} and --{option} {getattr(frame, option)} name two places: "
                "leave one of them out"
            )
    out = stage.out_dir(config, run_dir)
    if given != out and not (stage.folder in NESTED and given == out.parent):
        raise UserError(
            f"--output_dir {shown(given)}: with these options the stage's folder is "
            f"{shown(out)}; give that, or the options of {given.name}"
        )
    frame.run_id, frame.outputs_root = run_dir.name, str(run_dir.parent)
    frame.validate()
    return run_dir


def _check_resume(asked: str, out: Path) -> None:
    """Raise UserError where a stage is asked to resume from elsewhere than where it stopped."""
    if asked.lower() in ("", "true", "auto", "latest", "last"):
        return
    if asked.lower() == "false":
        raise UserError("a stage that was interrupted resumes by itself; --overwrite begins anew")
    if not resolve_path(asked).is_relative_to(out):
        raise UserError(
            f"--resume_from_checkpoint {asked}: a stage resumes by itself from where it stopped, in "
            f"{shown(out)}; to start from another policy give --policy_ckpt"
        )


def prepare(stage: Stage, argv: list[str] | None = None) -> Prepared:
    """Say what running a stage would do, without running it. Raises UserError for a wrong option."""
    plan = make_plan(stage, sys.argv[1:] if argv is None else argv)
    try:
        check_inputs(plan)
    except UserError as error:
        finished = (plan.out / manifests.MANIFEST).exists()
        return Prepared(plan.config, plan.run_dir, plan.out, f"stale: {error}" if finished else "missing")
    return Prepared(plan.config, plan.run_dir, plan.out, status_of(plan))


def check_inputs(plan: Plan) -> None:
    """Verify every input, then note what makes this execution the same work as another.

    Raises UserError where an input is missing or is not what the stage that wrote it recorded.
    """
    plan.inputs = {name: Path(path) for name, path in plan.stage.inputs(plan.config, plan.run_dir).items()}
    for path in plan.inputs.values():
        _verify_input(path, plan)
    _check_grounds(plan)
    check_reward(plan)
    plan.identity = _identity(plan, manifests.describe_inputs(plan.inputs, plan.run_dir))


def _identity(plan: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
    variant, config = plan.stage.variant_of(plan.config), plan.config.to_dict(plan.run_dir)
    return manifests.identity(plan.stage.folder, variant, plan.config.seed, config, inputs)


def _verify_input(path: Path, plan: Plan) -> None:
    run_dir = _run_of(path, plan.run_dir)
    if run_dir is None:
        if not path.exists():
            raise UserError(f"missing input {shown(path)}{_how_to_get(path)}")
        return
    relative = path.relative_to(run_dir)
    depth = 2 if relative.parts[0] in NESTED and len(relative.parts) > 2 else 1
    folder = Path(*relative.parts[:depth])
    asked = plan.arguments if run_dir == plan.run_dir else None

    def redo() -> str:
        return command_for(run_dir / folder, asked, redo=True)

    try:
        recorded = manifests.read_manifest(run_dir / folder)
    except UserError as error:
        raise UserError(f"{error}: run `{redo()}`") from None
    if recorded is None:
        unfinished = (run_dir / folder / manifests.IN_PROGRESS).exists()
        state = f"{shown(run_dir / folder)} is unfinished" if unfinished else f"missing input {shown(path)}"
        raise UserError(f"{state}: run `{command_for(run_dir / folder, asked)}` first")
    name = relative.as_posix()
    if not any(output == name or output.startswith(name + "/") for output in recorded["outputs"]):
        raise UserError(
            f"missing input {shown(path)}: {folder}/manifest.json does not list it; run `{redo()}`"
        )
    if added := manifests.unlisted_file(recorded, run_dir, name):
        raise UserError(
            f"{shown(added)} is no output of {folder}, whose manifest.json does not list it: delete it, or "
            "move it out of the run"
        )
    damage = manifests.damaged_output(recorded, run_dir, below=name)
    if damage:
        raise UserError(f"input {damage} since {folder}/manifest.json was written: run `{redo()}` to redo it")


def _check_grounds(plan: Plan) -> None:
    """`check_chain` of all that is read of this run and of others."""
    folders: dict[Path, set[str]] = {}
    for name, path in plan.inputs.items():
        run_dir = _run_of(path, plan.run_dir)
        folder = stage_folder(path.relative_to(run_dir).as_posix()) if run_dir else None
        if run_dir and folder and name not in plan.stage.judges_anew:
            folders.setdefault(run_dir, set()).add(folder)
    for run_dir, read in folders.items():
        check_chain(run_dir, read, plan.arguments.frame.strict_code)


def _run_of(path: Path, run_dir: Path) -> Path | None:
    """Return the run of a path in a stage's folder: this one, one beside it, or one elsewhere if the stage
    has a manifest; None for other paths.
    """
    if path.is_relative_to(run_dir.parent):
        run, stage, file = (*path.relative_to(run_dir.parent).parts, "", "", "")[:3]
        if row_of(stage) or (run == run_dir.name and file):
            return run_dir.parent / run
    for folder in (path, *path.parents)[:-1]:
        holder = folder.parent.parent if folder.parent.name in NESTED else folder.parent
        if row_of(folder.relative_to(holder).parts[0]) and (folder / manifests.MANIFEST).exists():
            return holder
    return None


def _how_to_get(path: Path) -> str:
    name = manifests.relative_name(path)
    if name.startswith("datasets/"):
        return f": run `./download.sh {name.split('/')[1]}` first"
    return ": no such file or folder"


def status_of(plan: Plan) -> str:
    """Compare the stage folder with the plan: missing, up_to_date, interrupted or "stale: <why>"."""
    return _status(plan, lambda recorded: plan.identity)


def status_by_settings(plan: Plan) -> str:
    """The status of a stage whose inputs are still to be made, taken to be those that it has read before."""
    return _status(plan, lambda recorded: _identity(plan, recorded.get("inputs", {})))


def _status(plan: Plan, identity: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """`status_of`, by the identity that the stage is to have; ``identity`` is given its manifest."""
    try:
        recorded = manifests.read_manifest(plan.out)
    except UserError as error:
        return f"stale: {error}"
    if recorded is None:
        return "interrupted" if started(plan.out).get("identity") == plan.identity else "missing"
    changed = manifests.identity_differences(recorded, identity(recorded))
    if changed:
        return f"stale: {_first(changed)}"
    damage = manifests.damaged_output(recorded, plan.run_dir)
    return f"stale: output {damage}" if damage else "up_to_date"


def started(out: Path) -> dict[str, Any]:
    """Return what an unfinished execution noted down when it began; {} if there is none."""
    with contextlib.suppress(UserError):
        noted = read_json(out / manifests.IN_PROGRESS)
        return noted if isinstance(noted, dict) else {}
    return {}


def _first(changed: list[str], count: int = 3) -> str:
    more = f" (and {len(changed) - count} more)" if len(changed) > count else ""
    return "; ".join(changed[:count]) + more
