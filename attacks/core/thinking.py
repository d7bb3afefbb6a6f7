"""Answers of models that think first: what was thought, and what was said.

Reasoning models write their thoughts between two markers before the answer. Records keep the whole
completion; judges, and whoever looks how an answer opens, see what was said only.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

#: Known pairs of markers: R1 and Qwen 3, Magistral, Seed-OSS, open reproductions of R1, EXAONE
#: Deep, Command A, Gemma 4, and gpt-oss, whose answer is a message in another channel.
PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thought>", "</thought>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)

#: Tokens that thinking gets where the suite itself asks for an answer that may begin with it. Long
#: enough for the pocket models; a model that thinks on has said nothing yet.
ALLOWANCE = 512


@dataclass(frozen=True)
class Markers:
    """The pair of markers that a model thinks between."""

    open: str
    close: str

    def split(self, completion: str) -> tuple[str, str]:
        """What was thought, and what was said, each without white space at its ends.

        Without markers all was said. A block that is never closed goes on to the end, so that a
        completion cut off in it has an empty answer; one that is closed without having been opened
        began at the start, as where the chat template opens it.
        """
        parts = re.split(f"({re.escape(self.open)}|{re.escape(self.close)})", completion)
        inside = parts[1:2] == [self.close]
        texts: dict[bool, list[str]] = {True: [], False: []}
        for index, part in enumerate(parts):
            if index % 2:
                inside = part == self.open
            elif part.strip():
                texts[inside].append(part.strip())
        return " ".join(texts[True]), " ".join(texts[False])

    def answer(self, completion: str) -> str:
        """What was said after thinking."""
        return self.split(completion)[1]

    def before_answer(self, completion: str) -> str:
        """The completion up to where the answer begins: thinking, the last close, white space.

        Empty where no block is closed.
        """
        end = completion.rfind(self.close) + len(self.close)
        if end < len(self.close):
            return ""
        return completion[: len(completion) - len(completion[end:].lstrip())]

    def opened_by(self, header: str) -> bool:
        """Whether what a prompt holds after the request ends in a block that is still open."""
        return header.rfind(self.open) > header.rfind(self.close)


def find_markers(tokens: Container[str], template: str) -> Markers | None:
    """The first of `PAIRS` that a model knows: as tokens of their own, or from its template.

    Args:
        tokens: the tokenizer's added tokens.
        template: the chat template.
    """
    for pair in PAIRS:
        if all(mark in tokens or mark in template for mark in pair):
            return Markers(*pair)
    return None
