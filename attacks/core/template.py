"""Chat templates as functions of the conversation alone: the date that they write is settled."""

from __future__ import annotations

import json
import string
from datetime import date
from typing import Any

from attacks.core.errors import BadInput

#: The day that chat templates which write today's date are told it is (those of Llama 3.1 and 3.2
#: do): the same request must have the same tokens tomorrow. Records name it in their revision.
DATE = "2024-07-26"
_ASKS = "strftime_now"
#: Stands for what is said in a turn; in no template.
MARK = "\ue001"


def asks_for_date(template: str) -> bool:
    """Whether a chat template asks what day it is, by the function of transformers for that."""
    return _ASKS in template


def frozen_template(template: str, day: str) -> str:
    """A chat template with `day` (YYYY-MM-DD, midnight) for its clock.

    The clock becomes a macro in front of the template, of the name of the function that it shadows:
    a function of ours would not reach the template, as transformers lets only plain data through.

    Raises:
        BadInput: `day` is no date.
    """
    try:
        when = date.fromisoformat(day)
    except ValueError:
        raise BadInput(f"date '{day}' is not a date; valid: YYYY-MM-DD, such as {DATE}") from None
    if not asks_for_date(template):
        return template
    # Without %s, the seconds since 1970, which differ by time zone; %-d is a day without its zero.
    directives = [f"%{form}{of}" for form in ("", "-") for of in string.ascii_letters if of != "s"]
    written = {directive: when.strftime(directive) for directive in directives}
    known = {directive: text for directive, text in written.items() if text != directive}
    told = "".join(f"|replace({json.dumps(a)}, {json.dumps(b)})" for a, b in known.items())
    # The empty expression keeps a line break at the start of the template.
    return "{% macro " + _ASKS + "(form) %}{{ form" + told + ' }}{% endmacro %}{{ "" }}' + template


def turn_end(tokenizer: Any) -> tuple[str, list[int]]:
    """The token that a chat template ends an answer with, if any, and all ids that it writes then.

    Only a token that was added to the vocabulary counts as an end: text may be in any answer.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
    try:
        written = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # A template is somebody else's program, and this one wants other turns.
        return "", []
    rest = written.rpartition(MARK)[2].strip()
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
    first = tokenizer.convert_ids_to_tokens(ids[:1])
    return (first[0] if first and first[0] in tokenizer.get_added_vocab() else ""), ids
