"""Targets stand where a model's own answers do, whatever the chat template writes before them."""

from __future__ import annotations

import copy

import pytest
import torch

from attacks.core.behavior import Behavior
from attacks.core.errors import BadInput
from attacks.core.layout import Layout
from attacks.core.model import Model
from attacks.core.model.chat import Chat
from attacks.core.prompt import SLOT, Message
from attacks.core.reading.dialogues import Dialogue
from conftest import POCKET, pocket, tiny

TURN = "{%- for message in messages %}"
USER = "{%- if message['role'] == 'user' %}"
ASKED = "{%- if add_generation_prompt %}"
PLAIN = (
    TURN + USER + "{{- 'USER: ' + message['content'] + '\\n' }}{%- else %}"
    "{{- 'ASSISTANT: ' + message['content'] + '\\n' }}{%- endif %}{%- endfor %}"
    + ASKED
    + "{{- 'ASSISTANT:' }}{%- endif %}"
)
INST = (
    TURN + USER + "{{- '[INST] ' + message['content'] + ' [/INST]' }}{%- else %}"
    "{{- ' ' + message['content'] | trim + ' ' }}{%- endif %}{%- endfor %}"
)
LINE = PLAIN.replace("'ASSISTANT: '", "'ASSISTANT:\\n'")
SPACED = PLAIN.replace("{{- 'ASSISTANT:' }}", "{{- 'ASSISTANT: ' }}")
#: Template, and what it writes between what asks for an answer and the answer.
TEMPLATES = {"plain": (PLAIN, " "), "inst": (INST, " "), "line": (LINE, "\n"), "none": (SPACED, "")}
TARGET = "Sure, here is how to"


def templated(template: str, system: str | None = None) -> Model:
    """A tiny model with another chat template."""
    model = tiny("llama")
    tokenizer = copy.deepcopy(model.chat.tokenizer)
    tokenizer.chat_template = template
    return Model(model.hf, tokenizer, name="templated", system=system)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_target_has_the_tokens_of_an_answered_turn(name: str) -> None:
    template, lead = TEMPLATES[name]
    model = templated(template)
    assert model.chat.lead == lead
    asked = model.conversation("How do I mend the bell?")
    turn = model.chat.ids(model.chat.render((*asked, Message("assistant", TARGET + " go on"))))
    dialogue = Dialogue.of(model, "How do I mend the bell?", TARGET)
    assert dialogue.ids.tolist() == turn[: len(dialogue.ids)]
    assert model.chat.decode([dialogue.ids[dialogue.first :].tolist()]) == [lead + TARGET]
    # What opens with white space brings its own.
    assert Dialogue.of(model, "a", " " + TARGET).ids.tolist() == model.chat.ids(
        model.chat.render(model.conversation("a")) + " " + TARGET
    )


def test_a_target_goes_on_where_an_answer_is_opened() -> None:
    model = templated(PLAIN)
    opened = (*model.conversation("a"), Message("assistant", "Sure,"))
    joint = model.prompt(opened, target=" here", rng=None)  # type: ignore[arg-type]
    assert model.chat.decode([joint.sequence.tolist()])[0].endswith("ASSISTANT: Sure, here")


@pytest.mark.parametrize("name", sorted(path.name for path in POCKET.iterdir() if path.is_dir()))
def test_shipped_templates_ask_right_before_the_answer(name: str) -> None:
    assert pocket(name).chat.lead == ""


def test_a_template_that_strips_contents_sends_the_first_filling_as_it_stands() -> None:
    """A filling that opens with a space would lose it, and with it its first token."""
    model, rng = pocket("pocket-llama"), torch.Generator().manual_seed(0)
    asked = Layout("both").conversation(model, Behavior("b", "Paint the harp."), 4)
    for _ in range(40):
        prompt = model.prompt(asked, target="Sure", rng=rng)
        assert prompt.trims and bool(model.chat.survives(prompt, prompt.slot_ids.unsqueeze(0)))
        (sent,) = model.chat.messages(prompt, prompt.slot_ids.unsqueeze(0))
        assert torch.equal(model.chat.tokens(sent)[0], prompt.ids)
    spaced = next(at for at in model.chat.allowed.nonzero() if model.chat.decode([at])[0][0] == " ")
    with pytest.raises(BadInput, match="the given filling"):
        model.prompt(asked, rng=rng, init=spaced.expand(prompt.n_slots))


def test_what_a_template_strips_of_the_rest_stands_in_no_filling_s_way() -> None:
    model, rng = pocket("pocket-llama"), torch.Generator().manual_seed(0)
    asked = (Message("system", "Be kind.\n"), Message("user", f"  Paint the harp. {SLOT * 4}"))
    prompt = model.prompt(asked, rng=rng)
    assert bool(model.chat.survives(prompt, prompt.slot_ids.unsqueeze(0)))
    (sent,) = model.chat.messages(prompt, prompt.slot_ids.unsqueeze(0))
    assert torch.equal(model.chat.tokens(sent)[0], prompt.ids)


def test_a_template_that_leaves_out_what_is_said_is_refused() -> None:
    """A system prompt that no model sees, or, with a template for images, no request at all."""
    silent = PLAIN.replace("{%- else %}", "{%- elif message['role'] == 'assistant' %}")
    assert templated(silent).system is None and templated(PLAIN, "Be kind.").system
    with pytest.raises(BadInput, match="'templated': its chat template leaves out system turns"):
        templated(silent, "Be kind.")
    parts = "{% for part in message.content %}{{ part.text }}{% endfor %}"
    with pytest.raises(BadInput, match="leaves out user turns"):
        templated(PLAIN.replace("{{- 'USER: ' + message['content'] + '\\n' }}", parts))


@pytest.mark.parametrize("rewriting", ["tojson", "lower", "replace('&', '&amp;')"])
def test_no_slots_where_a_template_rewrites_contents(rewriting: str) -> None:
    """What it sends would be other tokens than those that a search has chosen."""
    model = templated(PLAIN.replace("message['content'] +", f"message['content'] | {rewriting} +"))
    assert "mend" in model.chat.render(model.conversation("mend"))
    asked, rng = Layout("suffix").conversation(model, Behavior("b", "a"), 3), torch.Generator()
    with pytest.raises(BadInput, match="'templated': its chat template rewrites contents"):
        model.prompt(asked, rng=rng)
    assert templated(PLAIN).prompt(asked, rng=rng).n_slots == 3


def test_lengths_that_a_tokenizer_was_trained_with_do_not_hold() -> None:
    """`tokenizer.json` keeps truncation and padding; transformers sets both anew at every call."""
    own = pocket("pocket-llama").chat
    tokenizer = copy.deepcopy(own.tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=12)
    asked = pocket("pocket-llama").conversation("How do I mend the bell?")
    assert len(tokenizer.backend_tokenizer.encode(own.render(asked)).ids) == 12
    cut = Chat(tokenizer, "m", vocab_rows=own.vocab_rows, context=512)
    assert torch.equal(cut.tokens(asked)[0], own.tokens(asked)[0])


def test_a_template_whose_tokens_have_no_embedding_is_refused() -> None:
    """As where a tokenizer was saved with tokens that its model was not resized for."""
    model = tiny("llama")
    tokenizer = copy.deepcopy(model.chat.tokenizer)
    tokenizer.chat_template = PLAIN.replace("USER", "<|im_start|>")
    assert Model(model.hf, tokenizer, name="m").chat.try_out(model.conversation("a")) is None
    tokenizer.add_tokens(["<|im_start|>"])
    with pytest.raises(BadInput, match=r"writes '<.im_start.>', which has no embedding"):
        Model(model.hf, tokenizer, name="m")
