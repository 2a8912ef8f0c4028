"""Typed configuration: what is accepted, what is refused and with which words; the shared command line."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.external.faults.inputs import LAUGHS
from tests.support import toy
from tests.support.toy import SECOND, Inner, ToyAlgo
from utils.data.settings import DatasetConfig
from utils.frame import command_line as cli
from utils.frame.config import load_tier, portable, read_yaml
from utils.frame.files import UserError
from utils.frame.typed_settings import Text, changed, check, fields_of, leaf_keys, parse_scalar, setting
from utils.models.settings import ModelConfig


def load(tmp_path: Path, text: str, cls: type = ToyAlgo, **overrides):
    (tmp_path / "algo.yaml").write_text(text)
    return load_tier(cls, tmp_path / "algo.yaml", overrides)


def resolve(*argv: str):
    return cli.resolve(SECOND, cli.parse(SECOND, list(argv)))


def test_values_come_from_file_then_overrides_over_defaults(tmp_path):
    algo = load(tmp_path, "learning_rate: 1e-4\nmax_steps: 7\ninner: {rate: 1}\n", max_steps=Text("9"))
    assert algo == ToyAlgo(learning_rate=1e-4, max_steps=9, inner=Inner(rate=1.0))
    assert isinstance(algo.inner.rate, float)


@pytest.mark.parametrize("text", ["", "# nothing\n", "inner:\n"])
def test_an_empty_file_or_section_gives_defaults(tmp_path, text):
    assert load(tmp_path, text) == ToyAlgo()


@pytest.mark.parametrize(
    "text, words",
    [
        ("learning_rat: 1", ['unknown key "learning_rat"', 'did you mean "learning_rate"']),
        ("inner: {rat: 1}", ['unknown key "inner.rat"', 'did you mean "rate"']),
        ("learning_rate: fast", ['key "learning_rate" must be float', "'fast' (str)"]),
        ("learning_rate: .nan", ['key "learning_rate" must be float']),
        ("learning_rate: .inf", ['key "learning_rate" must be float']),
        ("learning_rate: true", ['key "learning_rate" must be float', "True (bool)"]),
        ("max_steps: 1.5", ['key "max_steps" must be int', "1.5 (float)"]),
        ("max_steps: true", ['key "max_steps" must be int']),
        ("max_steps: '7'", ['key "max_steps" must be int']),
        ("max_steps:", ['key "max_steps" must be int', "None"]),
        ("shuffle: 1", ['key "shuffle" must be bool']),
        ("kind: sigmod", ['key "kind" must be one of sigmoid, linear', 'did you mean "sigmoid"']),
        ("names: a", ['key "names" must be a list']),
        ("names: [1]", ['key "names[0]" must be str']),
        ("weights: [1]", ['key "weights" must be a mapping']),
        ("weights: {a: b}", ['key "weights.a" must be float']),
        ("limit: x", ['key "limit" must be int or null']),
        ("inner: 3", ['key "inner" must hold a mapping']),
        ("inner: {rate: 2}", ["inner.rate must be at most 1"]),
        ("- a\n- b\n", ["must hold a mapping of keys, found list"]),
        ("a: 1\nmax_steps: 1\nmax_steps: 2\n", [":3:", 'key "max_steps" is given twice']),
        ("a: [1\n", ["not valid YAML"]),
        ("a: \x00", ["not valid YAML"]),
        ("max_steps: 1\nlimit: 2024-13-45", [":2:", "not a value of kind timestamp"]),
        ('limit: !!int "zz"', [":1:", "not a value of kind int"]),
        ("limit: !!bool zz", ["not a value of kind bool"]),
        ("limit: 0x" + "f" * 999, ["a number beyond 64 bits"]),
        ("limit: " + "1:" * 999 + "1", ["a number beyond 64 bits"]),
        ("a: " + "[" * 60 + "]" * 60, ["nested too deeply"]),
        ("a: " + "[" * 5000, ["nested too deeply"]),
        ("a: &a [*a]", ["a value within itself"]),
        (LAUGHS, ["more than 20000 values"]),
        ("a: " + "x" * 300_000, ["longer than 200000 characters"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_key(tmp_path, text, words):
    with pytest.raises(UserError) as raised:
        load(tmp_path, text)
    message = str(raised.value)
    assert "algo.yaml" in message and "\n" not in message
    for word in words:
        assert word in message


def test_aliases_are_values(tmp_path):
    (tmp_path / "two.yaml").write_text("a: &a [1, 2]\nb: [*a, *a]")
    assert read_yaml(tmp_path / "two.yaml")["b"] == [[1, 2], [1, 2]]


def test_a_value_on_the_command_line_that_yaml_cannot_read_is_text():
    for text in ("2024-13-45", "[" * 5000, "!!int zz", "{", "&a [*a]"):
        assert parse_scalar(text) == text


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "grpo.yaml").write_text("")
    with pytest.raises(UserError, match=r"no such file; did you mean .*grpo\.yaml"):
        load_tier(ToyAlgo, tmp_path / "grop.yaml")


def test_an_error_says_whether_file_or_command_line_has_it(tmp_path):
    with pytest.raises(UserError, match="^command line .*inner.rate must be at most 1"):
        load(tmp_path, "inner: {rate: 1}", **{"inner.rate": Text("2")})


def test_all_built_in_tiers_refuse_impossible_values():
    for key, value in {
        "generation.temperature": 0,
        "generation.top_p": 1.1,
        "lora.r": 0,
        "lora.lora_dropout": 1.0,
        "training.save_steps": 0,
        "validation.eval_steps": 0,
        "model.max_prompt_length": -1,
        "model.torch_dtype": "float31",
    }.items():
        with pytest.raises(UserError, match=key.split(".")[1]):
            load_tier(ModelConfig, None, {key: value})
    with pytest.raises(UserError, match="val_fraction must be between 0 and 0.9"):
        load_tier(DatasetConfig, None, {"val_fraction": 1})


@dataclasses.dataclass
class Bounded:
    share: float = setting(0.5, "a share", above=0, at_most=1)
    count: int | None = setting(None, "a count", at_least=1)
    rate: float = setting(0.1, "a rate", between=(0, 0.5))
    size: int | str = setting(3, "a size", below=9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": 0.0}, "share must be above 0 and at most 1, found 0.0"),
        ({"share": 1.1}, "share must be above 0 and at most 1, found 1.1"),
        ({"count": 0}, "count must be at least 1, or null, found 0"),
        ({"rate": 0.6}, "rate must be between 0 and 0.5, found 0.6"),
        ({"size": 9}, "size must be below 9, found 9"),
        ({"share": 1.0, "count": 1, "rate": 0.0, "size": "any"}, None),
        ({"rate": 0.5, "size": 8}, None),
    ],
)
def test_bounds_hold_for_numbers_and_are_named(changes, words):
    if words is None:
        check(Bounded(**changes))
    else:
        with pytest.raises(ValueError, match=f"^{words}$"):
            check(Bounded(**changes))


def test_what_differs_from_the_defaults_and_what_two_classes_share():
    assert changed(ToyAlgo()) == {}
    assert changed(ToyAlgo(max_steps=7, inner=Inner(rate=1.0))) == {"max_steps": 7, "inner": {"rate": 1.0}}
    assert fields_of(Inner, Bounded(rate=0.2)) == {"rate": 0.2}


# ------------------------------------------------------------------------------------ command line

VALUES = {
    float: st.floats(allow_nan=False, allow_infinity=False),
    int: st.integers(-(10**17), 10**17),
    bool: st.booleans(),
    int | None: st.none() | st.integers(-(10**17), 10**17),
    list[str]: st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), max_size=3),
}
ALGO_KEYS = {key: hint for key, (hint, _) in leaf_keys(ToyAlgo).items() if hint in VALUES}
overrides = st.fixed_dictionaries({}, optional={key: VALUES[hint] for key, hint in ALGO_KEYS.items()})


@given(overrides.filter(lambda given: given.get("inner.rate", 0) <= 1), st.booleans(), st.booleans())
def test_every_value_typed_on_the_command_line_arrives(values, dotted, joined):
    argv = []
    for key, value in values.items():
        name = f"--algo.{key}" if dotted else f"--{key}"
        argv += [f"{name}={cli.plain(value)}"] if joined else [name, cli.plain(value)]
    algo = resolve(*argv).algo
    found = {key: algo.inner.rate if key == "inner.rate" else getattr(algo, key) for key in values}
    assert found == values
    assert all(type(found[key]) is type(values[key]) for key in values)


@given(st.lists(st.text(max_size=12), max_size=5))
def test_no_command_line_gives_anything_but_a_result_or_one_line(words):
    try:
        cli.parse(SECOND, words)
    except UserError as error:
        assert str(error)


def test_keys_may_be_shortened_where_that_is_unique():
    config = resolve("--learning_rate", "2e-5", "--lora.r", "8", "--max-steps=4", "--shuffle", "--fail", "x")
    assert config.algo.learning_rate == 2e-5 and config.model.lora.r == 8
    assert config.algo.max_steps == 4 and config.algo.shuffle is True and config.options.fail == "x"
    assert resolve("--shuffle", "false").algo.shuffle is False
    assert resolve("--weights.exact", "0.5").algo.weights == {"exact": 0.5}
    assert resolve("--limit", "null").algo.limit is None
    assert resolve("--names", "[a, b]").algo.names == resolve("--names", "a,b").algo.names == ["a", "b"]
    assert resolve("--limit", "010").algo.limit == 10


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--lerning_rate", "1"], 'unknown option --lerning_rate; did you mean "--algo.learning_rate"'),
        (["--algo.max_step", "1"], 'did you mean "--algo.max_steps"'),
        (["--run_di", "x"], 'did you mean "--run_id"'),
        (["--reward_config", "x"], "x: no such file"),
        (["--max_steps"], "option --max_steps needs a value"),
        (["--max_steps", "--seed", "1"], "option --max_steps needs a value"),
        (["--max_steps", "ten"], 'command line .*"max_steps" must be int, found "ten"'),
        (["--inner", "1"], "unknown option --inner"),
        (["--algo.inner", "1"], "unknown option --algo.inner"),
        (["grpo"], 'unexpected argument "grpo"'),
        (["--run_id", "../x"], "run_id must be"),
        (["--run_id", ""], "run_id must be"),
        (["--seed", "-1"], "seed must be"),
        (["--seed", "x"], '"seed" must be int'),
        (["--quick_test", "please"], 'unexpected argument "please"'),
        (["--algo_config", "tests/support/toy_alog.yaml"], r"no such file; did you mean .*toy_algo\.yaml"),
        (["--batch_size", "0"], "generation.batch_size must be at least 1"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv, words):
    with pytest.raises(UserError, match=words):
        resolve(*argv)


def test_an_ambiguous_key_lists_its_homes():
    @dataclasses.dataclass
    class Other:
        rate: int = 1

    stage = dataclasses.replace(
        SECOND, tiers=SECOND.tiers | {"reward": (Other, "tests/support/toy_model.yaml")}
    )
    with pytest.raises(UserError, match=r"ambiguous: write --algo.inner.rate \(a rate\) or --reward.rate"):
        cli.parse(stage, ["--rate", "1"])


def test_quick_test_lies_between_file_and_command_line():
    quick = resolve("--quick_test")
    assert quick.algo.max_steps == 2 and quick.algo.inner.rate == 0.1 and quick.quick_test
    assert resolve("--quick_test", "--max_steps", "3").algo.max_steps == 3
    assert resolve().algo.max_steps == 5


def test_outputs_folder_follows_option_then_model_tier(tmp_path, monkeypatch):
    def root(stage, *argv):
        arguments = cli.parse(stage, list(argv))
        return cli.output_root(stage, arguments.frame, cli.resolve(stage, arguments))

    (tmp_path / "model.yaml").write_text("paths: {outputs: elsewhere}\n")
    monkeypatch.chdir(tmp_path)
    assert root(SECOND) == cli.REPO_ROOT / "outputs"
    assert root(SECOND, "--config", "model.yaml") == cli.REPO_ROOT / "elsewhere"
    assert root(toy.FIRST, "--config", "model.yaml") == cli.REPO_ROOT / "elsewhere"
    assert root(SECOND, "--config", "model.yaml", "--outputs_root", "here") == tmp_path / "here"


def test_help_lists_every_key_with_its_effective_default():
    text = cli.help_text(SECOND, "03_toy.py")
    assert "Sum rows." in text and "reads:  01_preprocessing/train.jsonl" in text and "ckpt_sft/" in text
    for tier, (cls, _) in SECOND.tiers.items():
        for key in leaf_keys(cls):
            assert f"--{tier}.{key} " in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  --")}
    assert lines["--algo.learning_rate"].endswith("step size [float] (default: 0.0001)")
    assert lines["--model.lora.r"].endswith("(default: 4)")
    assert lines["--algo.kind"].endswith("[sigmoid | linear] (default: linear)")
    assert lines["--run_id"].endswith("(default: run_001)")
    assert lines["--algo_config"].endswith("(default: tests/support/toy_algo.yaml)")


# ---------------------------------------------------------------------------------- portable values


def test_no_absolute_path_reaches_the_resolved_configuration(tmp_path, monkeypatch):
    run_dir = tmp_path / "outputs" / "run_001"
    values = {
        "in_run": str(run_dir / "03_sft" / "ckpt"),
        "in_repo": str(cli.REPO_ROOT / "assets" / "student"),
        "outside": Path("/somewhere/else/model"),
        "relative": "assets/student",
        "nested": [{"x": str(run_dir / "a")}],
        "number": 1,
    }
    assert portable(values, run_dir) == {
        "in_run": "03_sft/ckpt",
        "in_repo": "assets/student",
        "outside": "external/model",
        "relative": "assets/student",
        "nested": [{"x": "a"}],
        "number": 1,
    }


def test_a_path_typed_on_the_command_line_is_meant_from_where_the_user_is(tmp_path, monkeypatch):
    (tmp_path / "my_model").mkdir()
    monkeypatch.chdir(tmp_path)
    config = resolve("--name_or_path", "my_model", "--teacher_name_or_path", "Qwen/Qwen2.5-0.5B")
    assert config.model.model.name_or_path == str(tmp_path / "my_model")
    assert config.model.model.teacher_name_or_path == "Qwen/Qwen2.5-0.5B"
    assert config.to_dict()["model"]["model"]["name_or_path"] == "external/my_model"
    assert "outputs" not in config.to_dict()["model"]["paths"]


def test_a_model_is_named_by_its_tier_a_folder_or_a_hub_name(tmp_path, monkeypatch):
    (tmp_path / "my_model").mkdir()
    monkeypatch.chdir(tmp_path)

    def models(*argv: str) -> tuple[str, str]:
        section = resolve(*argv).model.model
        return section.name_or_path, section.teacher_name_or_path

    tier = cli.parse(SECOND, ["--model", "SmolLM2-135m"])
    assert tier.frame.config == "configs/models/smollm2-135m.yaml" and not tier.overrides
    assert models("--model", "my_model") == (str(tmp_path / "my_model"),) * 2
    assert models("--model", "Qwen/Qwen3-0.6B") == ("Qwen/Qwen3-0.6B",) * 2
    assert models("--model", "gpt2", "--teacher_name_or_path", "gpt2-xl") == ("gpt2", "gpt2-xl")
    assert (
        models("--model", "gpt2", "--config", "tests/support/toy_model.yaml")[1]
        == models("--config", "tests/support/toy_model.yaml")[1]
    )
    for argv, words in (
        (
            ["smollm-135m"],
            '"smollm-135m" is no shipped tier, no folder and no hub name; did you mean "smollm2-',
        ),
        (["models/none/at all"], "is no shipped tier, no folder and no hub name"),
        (
            ["smollm2-135m", "--config", "tests/support/toy_model.yaml"],
            "--model smollm2-135m is a tier, and so is --config",
        ),
    ):
        with pytest.raises(UserError, match=words):
            resolve("--model", *argv)
    assert not cli.parse(dataclasses.replace(SECOND, tiers={}), ["--model", "my_model"]).overrides


def test_float_text_is_finite():
    assert math.isfinite(resolve("--learning_rate", "1E-4").algo.learning_rate)
    with pytest.raises(UserError):
        resolve("--learning_rate", "nan")
