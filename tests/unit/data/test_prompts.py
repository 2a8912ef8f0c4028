"""Prompts and completions: chat templates, what ends a turn, and days that pass."""

import pytest
from jinja2.exceptions import TemplateError

from tests.support.tiny_models import make_tiny_tokenizer
from utils.data import prompts
from utils.data.prompts import (
    PromptFormat,
    PromptTokens,
    completion_ids,
    end_of_turn,
    render_prompt,
    set_prompt_format,
    template_facts,
)
from utils.frame.files import UserError

PLAIN = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer():
    """One token per byte, and <end> as a special token that is not the end of sequence."""
    made = make_tiny_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<end>"]})
    return made


def test_without_a_template_the_prompt_is_the_text_after_what_opens_a_sequence(tokenizer):
    assert render_prompt(tokenizer, "hello") == "hello"
    opening = tokenizer.bos_token = "<end>"  # a token that the tokenizer knows
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{opening} $A", special_tokens=[(opening, tokenizer.convert_tokens_to_ids(opening))]
    )
    assert render_prompt(tokenizer, "hello") == "<end>hello"


def test_a_tokenizer_that_closes_texts_does_not_open_prompts(tokenizer):
    """Where the beginning and the end of a sequence are one token, its place tells which it is."""
    from tokenizers.processors import TemplateProcessing

    end = tokenizer.bos_token = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    assert render_prompt(tokenizer, "hello") == "hello"


def test_the_template_says_what_ends_a_turn(tokenizer):
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    tokenizer.chat_template = PLAIN
    set_prompt_format(tokenizer, PromptFormat())
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert end_of_turn(tokenizer) == end != tokenizer.eos_token_id
    assert completion_ids(tokenizer, ["7", "42"]) == [
        [*tokenizer("7")["input_ids"], end],
        [*tokenizer("42")["input_ids"], end],
    ]
    assert completion_ids(tokenizer, []) == []


def test_a_manifest_can_name_the_template(tokenizer):
    assert template_facts(tokenizer) == {}
    found = []
    for template in (PLAIN, PLAIN.replace("<end>", "<end> ")):
        tokenizer.chat_template = template
        set_prompt_format(tokenizer, PromptFormat())
        found.append(template_facts(tokenizer)["chat_template"])
    assert [facts["end_of_turn"] for facts in found] == ["<end>", "<end>"]
    assert found[0]["sha256"] != found[1]["sha256"]


def test_a_template_that_ends_no_turn_leaves_the_end_of_sequence(tokenizer):
    tokenizer.chat_template = PLAIN.replace("<end>", "")
    set_prompt_format(tokenizer, PromptFormat())
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id


def test_a_tokenizer_without_any_end_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-sequence"):
        completion_ids(tokenizer, ["7"])


def test_system_prompt_arguments_and_day_reach_the_template(tokenizer):
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}|{{ thinking }}|" + PLAIN
    set_prompt_format(tokenizer, PromptFormat("Be brief.", {"thinking": False}, "2026-02-03"))
    assert render_prompt(tokenizer, "6 x 7?") == (
        "03 Feb 2026|False|<|system|>Be brief.<end>\n<|user|>6 x 7?<end>\n<|assistant|>"
    )


def test_the_day_of_a_prompt_is_not_today(tokenizer):
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} " + PLAIN
    assert render_prompt(tokenizer, "?").startswith("2024-07-26 ")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{% for x in %}", "refuses a plain question"),
        ("{{ bos_token }}", "leaves the question out"),
    ],
)
def test_a_template_that_cannot_render_is_one_line(tokenizer, template, words):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=words) as error:
        set_prompt_format(tokenizer, PromptFormat())
    assert "\n" not in str(error.value) and not isinstance(error.value, TemplateError)


def test_prompts_that_come_again_are_tokenised_once():
    asked = []

    def tokenizer(texts, add_special_tokens):
        assert not add_special_tokens
        asked.extend(texts)
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    tokens = PromptTokens(tokenizer)
    assert tokens(["ab", "c", "ab"]) == [[97, 98], [99], [97, 98]]
    found = tokens(["c", "d", "ab"])
    assert found == [[99], [100], [97, 98]] and asked == ["ab", "c", "d"]
    found[0].append(0)  # what a caller does to its lists is its own affair
    assert tokens(["c"]) == [[99]] and tokens([]) == []


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + PLAIN


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (ENDLESS, "has not ended after"),
        (
            "{% if messages[0].content != '1 + 1?' %}" + ENDLESS + "{% else %}" + PLAIN + "{% endif %}",
            "not ended",
        ),
        ("{{ messages[0].content * 1000 }}", "writes 6000 characters around a prompt"),
    ],
    ids=["for every question", "for others than the first", "long"],
)
def test_a_template_has_its_time_and_its_length(tokenizer, monkeypatch, template, said):
    monkeypatch.setattr(prompts, "SECONDS", 0.2)
    monkeypatch.setattr(prompts, "CHARACTERS", 5000)
    tokenizer.chat_template = template
    with pytest.raises((UserError, ValueError), match=said):
        set_prompt_format(tokenizer, PromptFormat())
        render_prompt(tokenizer, "2 + 2?")
    tokenizer.chat_template = PLAIN
    render_prompt(tokenizer, "2 + 2?")  # no alarm is left behind
