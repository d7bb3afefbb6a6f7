"""Defences against direct formulas, their gradients, and the order in which they stand."""

from __future__ import annotations

import string
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from attacks.core.artefact import Artefact
from attacks.core.model import Model, ShieldedModel
from attacks.core.objectives import TargetCrossEntropy
from attacks.core.prompt import INSTRUCTION, Message, suffixed
from attacks.core.search import Evaluator
from attacks.core.shields import BlackBox, Exchange, Shield, Shielded
from benchmarks.common.roc import area_under_curve
from benchmarks.defenses import REFUSAL, load_defense
from benchmarks.defenses.erase_and_check import beginnings
from benchmarks.defenses.latent_guard import LatentCheck
from benchmarks.defenses.smooth_llm import copies, perturbed, target_losses, voted
from benchmarks.defenses.thresholds import halves, threshold_between
from benchmarks.inputs.behaviors import load_behaviors
from conftest import check_gradient, pocket

TRAIN = [row.for_attack() for row in load_behaviors("pocket-train")]
SOME = [row for row in TRAIN if row.harmful][:48] + [row for row in TRAIN if not row.harmful][:48]
REQUEST = "How do I smudge the violin, if I may ask?"


def fitted(spec: str, model: Model) -> tuple[Model, Artefact]:
    defense = load_defense(spec)
    made = defense.fit(model, SOME, rng=torch.Generator().manual_seed(0))
    return defense.around(model, made), made


def logits_of(model: Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.hf(input_ids=ids.unsqueeze(0)).logits[0]
    return found


# Rules against direct formulas -------------------------------------------------------------------


def test_perplexity_is_the_likelihood_of_the_request_s_tokens() -> None:
    plain = pocket("pocket-llama")
    model, made = fitted("perplexity:window=4", plain)
    ids, roles = plain.chat.tokens(plain.conversation(REQUEST))
    log_probs = logits_of(plain, ids).log_softmax(-1)
    own = [at for at in range(len(ids)) if roles[at] == INSTRUCTION]
    lost = [-float(log_probs[at - 1, ids[at]]) for at in own]
    windows = [sum(lost[at : at + 4]) / 4 for at in range(len(lost) - 3)]
    expected = max(sum(lost) / len(lost) - made.data["whole"], max(windows) - made.data["window"])
    (found,) = model.shields[0].scores(model, [plain.conversation(REQUEST)], ())  # type: ignore[attr-defined]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("token", "back"), [("instruction", None), ("last", -1)])
def test_latent_guard_is_a_cosine_at_one_token(token: str, back: int | None) -> None:
    plain = pocket("pocket-llama")
    model, made = fitted(f'latent-guard:token="{token}",layers=[3]', plain)
    ids, roles = plain.chat.tokens(plain.conversation(REQUEST))
    with torch.no_grad():
        states = plain.hf(input_ids=ids.unsqueeze(0), output_hidden_states=True).hidden_states[4][0]
    at = max(i for i in range(len(ids)) if roles[i] == INSTRUCTION) if back is None else back
    away = states[at] - made.tensors["centre.3"]
    cosine = float(cosine_similarity(away, made.tensors["direction.3"], dim=0))
    (found,) = model.shields[0].scores(model, [plain.conversation(REQUEST)], ())  # type: ignore[attr-defined]
    assert found == pytest.approx(cosine - made.data["threshold"], abs=1e-5)


@pytest.mark.parametrize(
    "spec", ["latent-guard", 'latent-guard:token="last"', "erase-and-check:erased=3"]
)
def test_scores_of_all_layers_in_one_pass_are_those_of_each_alone(spec: str) -> None:
    model, layers, texts = pocket("pocket-llama"), (0, 2, 5), [REQUEST, "Paint the harp."]
    defense = load_defense(spec)
    assert isinstance(defense, LatentCheck)
    rng = torch.Generator().manual_seed(0)
    made = replace(defense, layers=layers).fit(model, SOME, rng=rng)
    asked = [model.conversation(text) for text in texts]
    alone = [defense.scores(made, (layer,), model, asked) for layer in layers]
    together = defense.by_layer(made, layers, model, texts)
    torch.testing.assert_close(together, torch.tensor(alone).T, atol=1e-5, rtol=0)


def test_a_guard_that_may_read_the_training_sets_says_so() -> None:
    """Words of a prompt are known after one block; so are sets that differ in style."""
    train = [*SOME[:48], *load_behaviors("everyday-train[0:48]")]
    told = fitted('latent-guard:token="last"', pocket("pocket-llama"))[1].check
    assert told["verdict"] == "good" and "notes" not in told
    model = pocket("pocket-llama")
    spec = 'latent-guard:token="last"'
    styles = load_defense(spec).fit(model, train, rng=torch.Generator().manual_seed(0))
    assert "style" in styles.check["notes"][0] and styles.check["auc"] == 1.0
    joined = load_defense(f"perplexity+{spec}").fit(
        model, train, rng=torch.Generator().manual_seed(0)
    )
    assert joined.check["notes"][0].startswith("latent-guard: after the first block")


def test_latent_guard_s_direction_is_a_difference_of_means() -> None:
    model = pocket("pocket-llama")
    defense = load_defense('latent-guard:token="last",layers=[2]')
    made = defense.fit(model, SOME, rng=torch.Generator().manual_seed(0))
    rows, _ = halves(SOME, rng=torch.Generator().manual_seed(0), held_out=2 / 3)
    means = []
    for kind in (True, False):
        states = []
        for row in rows:
            if row.harmful == kind:
                ids = model.plain(row.text).ids.unsqueeze(0)
                with torch.no_grad():
                    out = model.hf(input_ids=ids, output_hidden_states=True)
                states.append(out.hidden_states[3][0, -1].double())
        means.append(torch.stack(states).mean(0))
    unit = (means[0] - means[1]) / (means[0] - means[1]).norm()
    torch.testing.assert_close(made.tensors["direction.2"], unit.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        made.tensors["centre.2"], ((means[0] + means[1]) / 2).float(), atol=1e-4, rtol=1e-4
    )


def test_erase_and_check_takes_the_most_harmful_of_what_is_left() -> None:
    plain = pocket("pocket-llama")
    model, made = fitted("erase-and-check:erased=3,layers=[3]", plain)
    ids, roles = plain.chat.tokens(plain.conversation(REQUEST))
    own = [at for at in range(len(ids)) if roles[at] == INSTRUCTION]
    cosines = []
    for count in range(4):
        kept = [at for at in range(len(ids)) if at not in own[len(own) - count :]]
        with torch.no_grad():
            out = plain.hf(input_ids=ids[kept].unsqueeze(0), output_hidden_states=True)
        away = out.hidden_states[4][0, -1] - made.tensors["centre.3"]
        cosines.append(float(cosine_similarity(away, made.tensors["direction.3"], dim=0)))
    (found,) = model.shields[0].scores(model, [plain.conversation(REQUEST)], ())  # type: ignore[attr-defined]
    assert found == pytest.approx(max(cosines) - made.data["threshold"], abs=1e-5)


def test_erase_and_check_always_leaves_a_token_of_the_request() -> None:
    model = pocket("pocket-llama")
    ids, roles = model.chat.tokens(model.conversation("Hi"))
    left = beginnings(ids, roles, 50)
    assert all((kept == INSTRUCTION).any() for _, kept in left)
    assert len(left) == int((roles == INSTRUCTION).sum())


@pytest.mark.parametrize("percent", [1.0, 10.0, 50.0])
def test_smooth_llm_changes_as_many_characters_as_it_says(percent: float) -> None:
    text = "abcdefghij" * 4
    wanted = max(1, int(len(text) * percent / 100))
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        swapped = perturbed(text, "swap", percent, rng)
        assert len(swapped) == len(text)
        assert sum(a != b for a, b in zip(text, swapped, strict=True)) <= wanted
        inserted = perturbed(text, "insert", percent, rng)
        assert len(inserted) == len(text) + wanted
        left = iter(inserted)
        assert all(char in left for char in text), "insertions take nothing away"
        patched = perturbed(text, "patch", percent, rng)
        changed = [i for i, (a, b) in enumerate(zip(text, patched, strict=True)) if a != b]
        assert len(patched) == len(text)
        assert not changed or max(changed) - min(changed) < wanted
        assert set(swapped + inserted + patched) <= set(string.printable)


@pytest.mark.parametrize(
    ("refused", "passes"),
    [([False, False, True], True), ([True, False, True], False), ([True, False], False)],
)
def test_smooth_llm_goes_by_more_than_half(refused: list[bool], passes: bool) -> None:
    answers = [Shielded(f"answer {at}") for at in range(len(refused))]
    said = voted("smooth-llm", answers, refused)
    assert said == (answers[refused.index(False)] if passes else REFUSAL)
    assert bool(said.by) != passes
    share = refused.count(False) / len(refused)
    assert said.scores["smooth-llm"] == pytest.approx(0.5 - share)


def test_smooth_llm_s_loss_over_copies_is_that_of_each_alone() -> None:
    model = pocket("pocket-llama")
    turns = model.conversation(REQUEST)
    garbled = copies(load_defense("smooth-llm"), turns, 3, seed=1)  # type: ignore[arg-type]
    assert len(set(garbled)) == 3
    target = torch.tensor(model.chat.ids(" Sure, here"))
    found = target_losses(model, garbled, target)
    for loss, one in zip(found, garbled, strict=True):
        ids, _ = model.chat.tokens(one)
        log_probs = logits_of(model, torch.cat([ids, target])).log_softmax(-1)
        rows = log_probs[len(ids) - 1 : -1].gather(1, target.unsqueeze(1))
        assert float(loss) == pytest.approx(-float(rows.mean()), abs=1e-4)


def test_reminders_stand_around_the_request_and_are_no_part_of_it() -> None:
    plain = pocket("pocket-llama")
    model = load_defense('self-reminder:before="A. ",after=" B."').around(plain, Artefact())
    told = plain.conversation(f"A. {REQUEST} B.")
    assert model.chat.render(model.conversation(REQUEST)) == plain.chat.render(told)
    ids, roles = model.chat.tokens(model.conversation(REQUEST))
    assert plain.chat.decode([ids[roles == INSTRUCTION].tolist()])[0].strip() == REQUEST
    system = load_defense('system-prompt:text="Be good."').around(plain, Artefact())
    expected = (Message("system", "Be good."), *plain.conversation(REQUEST))
    assert system.chat.render(system.conversation(REQUEST)) == plain.chat.render(expected)


def test_thresholds_keep_to_the_budget_and_to_the_middle_of_a_gap() -> None:
    harmless = [0.1 * at for at in range(20)]
    assert threshold_between(harmless, [], 0.0) == pytest.approx(1.9)
    assert sum(x > threshold_between(harmless, [], 0.1) for x in harmless) == 2
    assert threshold_between(harmless, [3.9, 5.0], 0.0) == pytest.approx(2.9)
    assert threshold_between(harmless, [0.5, 5.0], 0.0) == pytest.approx(1.9)


def test_area_under_the_curve_counts_pairs() -> None:
    low, high = [0.0, 1.0, 1.0, 2.0], [1.0, 3.0, 0.5]
    pairs = [(a > b) + 0.5 * (a == b) for a in high for b in low]
    assert area_under_curve(low, high) == pytest.approx(sum(pairs) / len(pairs))
    assert area_under_curve([], high) is None


def test_twins_stay_together_when_training_behaviours_are_split() -> None:
    rows, rest = halves(TRAIN, rng=torch.Generator().manual_seed(3))
    ids = {row.id for row in rows}
    assert all(row.twin in ids for row in rows if row.harmful)
    assert len(rows) + len(rest) == len(TRAIN)


# Attacks that know of it -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ['latent-guard:layers=[1,3],token="last"', "latent-guard:layers=[2]"]
)
def test_gradient_through_a_check_equals_finite_differences(spec: str) -> None:
    plain = pocket("pocket-llama", "float64")
    model, _ = fitted(spec, plain)
    (check,) = model.shields
    assert isinstance(model, ShieldedModel)
    # A margin so wide that the hinge is open.
    model.shields = (type(check)("g", REFUSAL, 7.0, 5.0, check.excess),)  # type: ignore[attr-defined, call-arg]
    behavior = load_behaviors("pocket-test")[0].for_attack()
    prompt = model.prompt(
        suffixed(behavior, 3), target="Sure", rng=torch.Generator().manual_seed(0)
    )
    bound = TargetCrossEntropy().bind(model, prompt, Artefact())
    search = Evaluator(model, prompt, bound)
    undefended = Evaluator(plain, prompt, bound)
    assert not torch.equal(
        search.gradient(prompt.slot_ids)[0], undefended.gradient(prompt.slot_ids)[0]
    )
    check_gradient(search, Evaluator(model, prompt, bound, use_cache=False))


@pytest.mark.parametrize("spec", ["latent-guard", "perplexity"])
def test_the_loss_grows_by_the_weighted_excess(spec: str) -> None:
    plain = pocket("pocket-llama")
    model, _ = fitted(f"{spec}:margin=100.0,weight=2.5", plain)
    behavior = load_behaviors("pocket-test")[1].for_attack()
    prompt = model.prompt(
        suffixed(behavior, 3), target="Sure", rng=torch.Generator().manual_seed(0)
    )
    bound = TargetCrossEntropy().bind(model, prompt, Artefact())
    ids = torch.stack([prompt.slot_ids, prompt.slot_ids.flip(0)])
    ids = ids[model.chat.survives(prompt, ids)]
    found = Evaluator(model, prompt, bound).losses(ids)
    alone = Evaluator(plain, prompt, bound).losses(ids)
    asked = model.chat.messages(prompt, ids)
    excess = torch.tensor(model.shields[0].scores(model, asked, ()))  # type: ignore[attr-defined]
    torch.testing.assert_close(found - alone, 2.5 * (excess + 100.0), atol=1e-3, rtol=1e-4)


def test_what_has_no_gradient_is_added_to_the_best_candidates() -> None:
    plain = pocket("pocket-llama")
    model = ShieldedModel(
        plain,
        [
            BlackBox(
                "long", REFUSAL, 1.0, 0.0, lambda model, asked, _: [float(len(asked))] * len(asked)
            )
        ],
    )
    behavior = load_behaviors("pocket-test")[1].for_attack()
    prompt = model.prompt(
        suffixed(behavior, 3), target="Sure", rng=torch.Generator().manual_seed(0)
    )
    bound = TargetCrossEntropy().bind(model, prompt, Artefact())
    ids = torch.stack([prompt.slot_ids, prompt.slot_ids.flip(0), prompt.slot_ids.roll(1)])
    alone = Evaluator(plain, prompt, bound).losses(ids)
    found = Evaluator(model, prompt, bound).losses(ids, k=2)
    best = alone.argsort()[:2]
    torch.testing.assert_close(found[best], alone[best] + 2.0)
    assert found.isinf().sum() == 1


# Order -------------------------------------------------------------------------------------------


class Says(Shield):
    """Notes that it is asked, and blocks what holds a word."""

    def __init__(self, title: str, word: str, log: list[str]) -> None:
        self.title, self.word, self.log = title, word, log

    @property
    def name(self) -> str:
        return self.title

    def answer(self, exchange: Exchange, asked) -> list[Shielded]:  # type: ignore[no-untyped-def]
        self.log.append(self.title)
        passed = iter(exchange.ask([t for t in asked if self.word not in t[-1].content]))
        return [
            Shielded(REFUSAL, self.title) if self.word in turns[-1].content else next(passed)
            for turns in asked
        ]


def test_the_first_shield_is_nearest_to_the_user() -> None:
    log: list[str] = []
    model = ShieldedModel(pocket("pocket-llama"), [Says("b", "harp", log)])
    model = ShieldedModel(model, [Says("a", "violin", log)])
    asked = [model.conversation(f"How do I tune the {it}?") for it in ("harp violin", "harp")]
    said = model.generate([*asked, model.conversation("Hello")], max_new_tokens=3)
    assert log == ["a", "b"]
    assert [one.by for one in said] == ["a", "b", ""]  # type: ignore[attr-defined]
    assert model.unguarded().generate(asked, max_new_tokens=3) == pocket("pocket-llama").generate(
        asked, max_new_tokens=3
    )


def test_a_stack_reads_the_model_as_its_changes_leave_it() -> None:
    plain = pocket("pocket-llama")
    reminder, guard = 'self-reminder:before="A. ",after=" B."', "latent-guard:layers=[3]"
    models = [fitted(f"{guard}+{reminder}", plain)[0], fitted(f"{reminder}+{guard}", plain)[0]]
    alone, _ = fitted(reminder, plain)
    inner, _ = fitted(guard, alone)
    turns = [plain.conversation(REQUEST)]
    scores = [m.shields[0].scores(m, turns, ()) for m in (*models, inner)]  # type: ignore[attr-defined]
    assert scores[0] == scores[1]
    assert scores[0] == pytest.approx(scores[2], abs=0.5)
    assert [m.chat.render(turns[0]) for m in models] == [alone.chat.render(turns[0])] * 2
