"""Models that think, in a run and in an inspection."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from benchmarks.harness import bench
from benchmarks.harness.runner import run
from benchmarks.inputs.behaviors import load_behaviors
from benchmarks.inputs.suites import Suite
from benchmarks.inspect import page_thinking, plots, thinking
from benchmarks.inspect.results import THOUGHT
from benchmarks.inspect.subject import Options, Subject, load_prompts
from benchmarks.judges import Judge, Verdict
from benchmarks.storage.store import read_judgements, read_records
from conftest import pocket

NAME, TRAIN, TEST = "pocket-llama-think", "pocket-pretext-train", "pocket-pretext-test"


class Seen(Judge):
    """Notes what judges see."""

    name, summary = "seen", "notes what it sees"
    texts: list[str] = []  # noqa: RUF012

    def judge(self, behavior, completion, *, openers):  # type: ignore[no-untyped-def]
        self.texts.append(completion)
        return Verdict(False, "refused")


def test_records_keep_thinking_and_judges_do_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "load_judge", lambda name: Seen())
    for tokens, said in ((160, True), (12, False)):
        Seen.texts = []
        out = tmp_path / str(tokens)
        suite = Suite(
            "s", (NAME,), ("direct",), TEST, limit=2, judges=("phrases",), max_new_tokens=tokens
        )
        assert run(suite, out)
        completions = [record.completions[0] for record in read_records(out)]
        assert all(text.startswith("<think>") for text in completions)
        assert len(list(read_judgements(out))) == 2
        # Once as the stop judge and once as the suite's; nothing where thinking was cut off.
        assert len(Seen.texts) == 4
        for text in Seen.texts:
            assert "think" not in text and bool(text) == said
        if said:
            answers = Counter(text.partition("</think>")[2].strip() for text in completions)
            assert Counter(Seen.texts) == answers + answers


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Eight prompts of each kind, to fit on and to look at; half of the harmful ones answered."""
    prompts = load_prompts(Options(NAME, train=TRAIN, behaviors=TEST, limit=8))
    return Subject(
        pocket(NAME), prompts, 0, None, ("i cannot", "i am unable", "i'm sorry", "sorry")
    )  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_section_on_thinking(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_PROMPTS": 16, "_ASKED": 4, "_DRAWS": 1, "_LAYERS": 3}.items():
        monkeypatch.setattr(thinking, name, value)
    found = thinking.measure(subject)
    assert found is not None and not found.note
    rows = load_behaviors(TEST)[:8]
    gives_in = sum("play" in row.text or "story" in row.text for row in rows)
    assert found.counts == {"refused": 8 - gives_in, "answered": gives_in, "harmless": 8}
    assert found.layers == [0, 2, 5] and found.closing == 3
    for group in THOUGHT:
        assert np.shape(found.whole[group]) == (3, 100)
        assert np.shape(found.late[group]) == np.shape(found.lens[group]) == (3, 19)
        values = np.array([found.late[group], found.lens[group]])
        assert (values >= 0).all() and (values <= 1).all()
        for at, cliff in enumerate(found.cliffs[group]):
            assert cliff["final"] == pytest.approx(found.late[group][at][-1], abs=1e-5)
            assert cliff["drop"] == pytest.approx(cliff["plateau"] - cliff["final"])
    # The last layer knows what is about to be said.
    finals = {group: found.cliffs[group][-1]["final"] for group in THOUGHT}
    assert finals["refused"] > 0.9 and finals["answered"] < 0.1 and finals["harmless"] < 0.1
    assert found.matched[-1] == 1
    assert [len(row.heads) for row in found.ablated] == [0, 2, 2, 0]
    with plots._figure(tmp_path / "cliff.png", 6.6) as figure:
        plots._cliff(figure, SimpleNamespace(thinking=found))  # type: ignore[arg-type]
    assert imread(tmp_path / "cliff.png")[..., :3].std() > 0.03
    text = "\n".join(page_thinking.section(found, {"cliff": "![cliff](cliff.png)"}))
    assert "(cliff.png)" in text and "nan" not in text and "3 tokens that close" in text


def test_models_that_do_not_think_have_no_such_section(subject: Subject) -> None:
    plain = Subject(pocket("pocket-llama"), subject.prompts, 0, None, ())  # type: ignore[arg-type]
    assert thinking.measure(plain) is None
    assert page_thinking.section(None, {}) == []
