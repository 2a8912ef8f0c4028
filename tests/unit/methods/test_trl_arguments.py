"""Settings reach TRL's configurations by their names; what does not is listed here."""

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Literal, get_args, get_origin

import pytest
from trl import DPOConfig, GRPOConfig, SFTConfig

from utils.frame.config import StageConfig, load_tier
from utils.frame.files import UserError
from utils.frame.typed_settings import field_types, fields_of
from utils.methods.distill.settings import DistillAlgo
from utils.methods.distill.trainer import GroupDistillationConfig
from utils.methods.dpo.settings import DpoAlgo
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.ppo.ppo_config import PPOConfig
from utils.methods.ppo.settings import PpoAlgo, PpoUpdates
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.rloo.trainer import BaselineRLOOConfig
from utils.methods.sft.settings import SftAlgo
from utils.models.settings import GenerationSection, ModelConfig
from utils.rollouts.start import rollout_arguments

ROLLOUTS = {"num_rollouts", "curriculum", "rollout_batch_size", "tuning"}
REWARDED = ROLLOUTS | {"group_filter", "group_filter_limit", "overlong_buffer"}
# Settings class -> the configuration that its trainer takes, and the settings that have no field there.
CONFIGS = {
    SftAlgo: (SFTConfig, {"tuning"}),
    DpoAlgo: (DPOConfig, {"validation_kl", "tuning"}),
    DistillAlgo: (GroupDistillationConfig, ROLLOUTS),
    PpoAlgo: (PPOConfig, REWARDED | {"value_model"}),
    GrpoAlgo: (GRPOConfig, REWARDED | {"supervision"}),
    RlooAlgo: (BaselineRLOOConfig, REWARDED | {"num_samples"}),
}
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 5}
WITH_ROLLOUTS = [cls for cls in CONFIGS if cls not in (SftAlgo, DpoAlgo)]


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_every_setting_has_its_field_in_trls_configuration(cls):
    """A setting that TRL names otherwise, or no longer has, would be dropped without a word."""
    config, apart = CONFIGS[cls]
    assert {each.name for each in fields(cls)} - {each.name for each in fields(config)} == apart


def another(hint, value):
    """A value of the type that is not the default, where batches do not depend on it."""
    if hint is bool:
        return not value
    if get_origin(hint) is Literal:
        return get_args(hint)[-1]
    return 0.375 if hint in (float, float | None) else value


@pytest.mark.parametrize("cls", WITH_ROLLOUTS, ids=lambda cls: cls.__name__)
def test_what_is_set_arrives(cls, tmp_path):
    config, apart = CONFIGS[cls]
    default = cls()
    given = {
        name: another(hint, getattr(default, name))
        for name, hint in field_types(cls).items()
        if name not in apart
    }
    algo = cls(**given, num_rollouts=3)
    model = ModelConfig(generation=GenerationSection(max_new_tokens=11, **SAMPLING))
    ctx = SimpleNamespace(config=StageConfig(model=model, algo=algo), seed=4, out=tmp_path)
    made = config(**rollout_arguments(ctx, config))
    kept = {name: value for name, value in given.items() if name not in SAMPLING}
    assert len(kept) >= 10 and {name: getattr(made, name) for name in kept} == kept
    assert {name: getattr(made, name) for name in SAMPLING} == SAMPLING  # not the divergence's
    assert (made.num_generations, made.max_completion_length, made.seed) == (8, 11, 4)
    assert made.max_steps == 3 * 4 and made.generation_batch_size == algo.rollout_size == 128


@pytest.mark.parametrize("cls", WITH_ROLLOUTS, ids=lambda cls: cls.__name__)
def test_the_size_of_a_rollout_is_one_option_everywhere(cls, tmp_path):
    algo = load_tier(cls, None, {"rollout_batch_size": 32, "num_rollouts": 3})
    assert (algo.rollout_size, algo.per_device_train_batch_size, algo.num_prompts) == (32, 16, 12)
    assert replace(algo, num_rollouts=1).rollout_size == 32
    config, _ = CONFIGS[cls]
    ctx = SimpleNamespace(config=StageConfig(model=ModelConfig(), algo=algo), seed=4, out=tmp_path)
    made = config(**rollout_arguments(ctx, config))
    assert (made.generation_batch_size, made.max_steps) == (32, 3 * 4)
    with pytest.raises(UserError, match="rollout_batch_size .33. must be a multiple of"):
        load_tier(cls, None, {"rollout_batch_size": 33})


def test_ppos_configuration_has_ppos_defaults():
    defaults = {each.name: each.default for each in fields(PPOConfig)}
    own = fields_of(PpoUpdates, PpoAlgo())
    assert len(own) == 27 and {name: defaults[name] for name in own} == own
