import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from steer_heal import forward
from steer_heal.config import FOUNDATIONS, SettingsError
from steer_heal.data import Frame
from steer_heal.evaluate import tinymfv
from steer_heal.evaluate.agreement import agreement, wilson
from steer_heal.evaluate.choice import Answer, evaluate, profile, score
from steer_heal.evaluate.frames import choose
from steer_heal.evaluate.logp import text_logp
from steer_heal.evaluate.questions import Asking, answer_ids, ask
from steer_heal.evaluate.readings import gated_selectivity, signed_flips
from steer_heal.evaluate.relevance import OTHERS, relevances
from steer_heal.evaluate.scoring import think
from steer_heal.forward.ours import OurForward
from steer_heal.forward.plain import PlainForward
from steer_heal.models import user
from steer_heal.records import CANNOT_ANSWER, Agreement, Profile, Stopped, Vignette, VignetteScore
from steer_heal.vectors.steering import coefficients, steer
from tests import tiny
from tests.close import assert_near, model_rounding, nats

FRAME = Frame("test", "{text} One of: {options}.", FOUNDATIONS, '{"answer": "')
LONG = replace(FRAME, options=("yes", "yesno", "no", "Care", "maybe", "x", "zebra"))


@pytest.fixture
def lm():
    return tiny.shared("gemma3")


@pytest.fixture
def few():
    return [
        Vignette(f"v{i}", name, f"You see {'a man ' * i}.", "other_violate")
        for i, name in enumerate(FOUNDATIONS[:3], 1)
    ]


@pytest.fixture
def vector(lm):
    return tiny.vector(lm, seed=1)


def of_tokens(lm, prompt, ids):
    """Log-prob of each of the tokens, fed as one sequence without padding."""
    with torch.no_grad():
        logp_TV = lm.model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    return [float(logp_TV[len(prompt) - 1 + i, token]) for i, token in enumerate(ids)]


def by_hand(lm, vignette, order, frame=FRAME):
    """Log-prob of each answer."""
    prompt = lm.encode_chat([user(frame.render(vignette.text, order))], frame.prefill)
    return [sum(of_tokens(lm, prompt, ids)) for ids in answer_ids(lm, frame)]


@pytest.mark.parametrize("frame", [FRAME, LONG], ids=["single-token", "many-token"])
def test_scores_are_those_computed_by_hand(arch, frame, few):
    lm = tiny.shared(arch)
    found = evaluate(lm, few, frame, batch_size=4)[0]
    for vignette, got in zip(few, found.per_vignette, strict=True):
        logp_OF = torch.tensor([by_hand(lm, vignette, order, frame) for order in frame.orders])
        wanted = logp_OF.mean(0)
        mass, each = logp_OF.exp().sum(1).mean(), logp_OF.softmax(1)
        assert_near(list(got.score.values()), wanted, model_rounding(lm))
        nats = wanted.abs().max()
        assert_near(list(got.p.values()), wanted.softmax(0), model_rounding(lm), nats)
        assert_near(got.mass, mass, model_rounding(lm), nats * mass)
        assert_near(got.order_tv, 0.5 * (each[0] - each[1]).abs().sum(), model_rounding(lm), nats)


def test_the_words_of_the_frame_are_one_token_or_many(lm):
    assert {len(ids) for ids in answer_ids(lm, FRAME)} == {1}
    assert {len(ids) for ids in answer_ids(lm, LONG)} > {1}
    with pytest.raises(SettingsError, match="cannot tell the answers"):
        answer_ids(lm, replace(FRAME, options=("A", "A", *FOUNDATIONS[2:])))


def test_prefill_nll_is_the_mean_over_the_prefill(lm, few):
    got = evaluate(lm, few[:1], replace(FRAME, orders=("forward",)))[0].per_vignette[0]
    message = [user(FRAME.render(few[0].text, "forward"))]
    bare, whole = lm.encode_chat(message), lm.encode_chat(message, FRAME.prefill)
    assert whole[: len(bare)] == bare
    logp_TV = lm.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    wanted = [-float(logp_TV[i - 1, whole[i]]) for i in range(len(bare), len(whole))]
    assert_near(got.prefill_nll, sum(wanted) / len(wanted), model_rounding(lm), wanted)
    assert got.order_tv == 0.0


def test_what_cannot_be_answered_counts_no_mass_and_is_left_out(few):
    good = Answer((math.log(0.5), *[math.log(0.05)] * 6), 0.1)
    broken = Answer((math.nan,) * 7, math.nan)
    silent = Answer((-2000.0,) * 7, 0.1)
    found = profile(
        [score(few[0], [good, good]), score(few[1], [good, broken]), score(few[2], [silent, silent])]
    )
    assert (found.n_vignettes, found.n_invalid) == (3, 2)
    assert found.coherence == pytest.approx(0.8 / 3)
    assert found.p["Care"] == pytest.approx(0.5 / 0.8)
    assert sum(profile([score(few[1], [broken])]).p.values()) == 0.0


def test_bad_calls_and_stopping(lm, few):
    with pytest.raises(SettingsError, match="no vignettes"):
        evaluate(lm, [], FRAME)
    with pytest.raises(SettingsError, match="vector"):
        evaluate(lm, few, FRAME, coefficients_RL=torch.zeros(1, lm.n_layers))
    ticks = []
    with pytest.raises(Stopped):
        evaluate(
            lm, few, FRAME, batch_size=2, stop=lambda: len(ticks) > 1, progress=lambda *t: ticks.append(t)
        )
    assert ticks == [(2, 6), (4, 6)]


def test_text_logp_is_that_of_each_text_alone(arch):
    lm = tiny.shared(arch)
    prompts = [[2, 40, 41], [2, 50], [2, 60, 61, 62, 63]]
    texts = [[70, 71], [], [80, 81, 82, 83]]
    got = text_logp(lm, prompts, texts, batch_size=2)
    for prompt, ids, logp in zip(prompts, texts, got, strict=True):
        assert_near(logp, of_tokens(lm, prompt, ids), model_rounding(lm))


def test_text_logp_in_slices_is_the_same(lm, monkeypatch):
    whole = text_logp(lm, [[2, 40]], [[70, 71, 72]])
    monkeypatch.setattr("steer_heal.forward.rows.FLOAT32_LIMIT", 1)
    assert text_logp(lm, [[2, 40]], [[70, 71, 72]]) == whole
    with pytest.raises(Stopped):
        text_logp(lm, [[2, 40]], [[70]], stop=lambda: True)


ASKED = ["Hello there.", "What is it?", "Who, and why?", "Where do they go in the rain?", "One more."]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_relevance_is_that_of_whole_rows_after_each_other_prompt(arch, n):
    lm = tiny.shared(arch)
    prompts = [lm.encode_chat([user(text)]) for text in ASKED[:n]]
    ids = [[40 + number, 41, 77, 42][: 2 + number] for number in range(n)]
    candidates = [lm.encode_chat([user(text)]) for text in OTHERS]
    prompts[0] = candidates[1]
    own = text_logp(lm, prompts, ids)
    for prompt, text, logp, found in zip(prompts, ids, own, relevances(lm, prompts, ids, own), strict=True):
        others = [other for other in candidates if other != prompt]
        assert len(others) == len(OTHERS) - (prompt in candidates)
        rows = text_logp(lm, others, [text] * len(others))
        wanted = fmean(logp) - fmean(map(fmean, rows))
        assert_near(found, wanted, model_rounding(lm), nats(lm, prompt))


def test_an_empty_answer_has_no_relevance_and_it_can_be_stopped():
    lm = tiny.shared()
    prompts = [lm.encode_chat([user(text)]) for text in ASKED[:2]]
    own = text_logp(lm, prompts, [[], [40]])
    told: list[int] = []
    assert relevances(lm, prompts, [[], [40]], own, progress=told.append)[0] is None
    assert told == [1, 3]
    assert relevances(lm, [], [], []) == []
    with pytest.raises(Stopped):
        relevances(lm, prompts, [[], [40]], own, stop=lambda: True)


def scored(labels, answers, mass=1.0):
    return [
        VignetteScore(f"v{i}", label, {}, dict.fromkeys(FOUNDATIONS, 0.1) | {answer: 0.4}, mass, 0.0, 0.0)
        for i, (label, answer) in enumerate(zip(labels, answers, strict=True))
    ]


TWICE = FOUNDATIONS * 2


def test_it_is_the_share_whose_likeliest_foundation_is_the_label():
    found = agreement(scored(TWICE, (*FOUNDATIONS, *FOUNDATIONS[::-1])))
    assert found.value == pytest.approx(8 / 14)
    assert (found.low, found.high) == pytest.approx(wilson(8, 14))
    assert found.chance == pytest.approx(1 / 7)
    assert not found.cannot_answer
    assert found.sentence("cloze") == "agreement 0.57 (0.33-0.79), chance 0.14, frame cloze"


def test_naming_one_foundation_always_is_chance_and_says_so():
    found = agreement(scored(TWICE, ["Care"] * 14))
    assert found.value == found.chance
    assert found.cannot_answer
    assert found.sentence().startswith(f"{CANNOT_ANSWER}: agreement 0.14")
    mostly = agreement(scored(["Care"] * 10 + ["Loyalty"] * 4, ["Care"] * 14))
    assert mostly.value == mostly.chance == pytest.approx(10 / 14), "the most frequent label is no skill"
    assert mostly.cannot_answer


def test_what_could_not_be_answered_agrees_with_nothing():
    broken = [
        VignetteScore("v", "Care", {}, dict.fromkeys(FOUNDATIONS, 0.0), 0.0, math.nan, 0.0) for _ in range(7)
    ]
    rest = [name for name in FOUNDATIONS if name != "Care"]
    assert agreement([*broken, *scored([*rest, "Liberty"], [*rest, "Liberty"])]).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([""] * 20, "no labels"),
        (["Care"] * 20, "all vignettes are labelled Care"),
        (FOUNDATIONS, "fewer than 14 vignettes"),
    ],
)
def test_where_it_is_not_to_be_had_one_sentence_says_why(labels, why):
    found = agreement(scored(labels, ["Care"] * len(labels)))
    assert (found.value, found.low, found.chance, found.cannot_answer) == (None, None, None, False)
    assert found.sentence("choice") == f"agreement is not to be had, frame choice: {found.why}"
    assert not found.why.endswith(".")
    assert why in found.why
    assert found.sentence() == f"agreement is not to be had: {found.why}"


def test_wilson_s_interval_is_the_published_one():
    """81 of 263: 0.2553 to 0.3662, Newcombe, 1998, Statistics in Medicine 17, table I."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0
    assert 0.0 < wilson(0, 20)[1] < 0.2


def one(frame, value, low, chance=1 / 7):
    return Profile({}, None, 70, frame=frame, agreement=Agreement(value, low, 1.0, chance))


def test_the_frame_that_agrees_best_is_chosen_and_one_above_chance_first():
    choice, cloze = one("choice", 0.15, 0.08), one("cloze", 0.6, 0.5)
    assert choose([choice, cloze]).frame == "cloze"
    assert choose([one("choice", 0.9, 0.8), cloze]).frame == "choice"
    assert choose([one("choice", 0.6, 0.5), cloze]).frame == "choice", "alike: the first"
    assert choose([one("choice", 0.5, 0.1), one("cloze", 0.3, 0.2)]).frame == "cloze"
    assert choose([choice, one("cloze", 0.2, 0.12)]).agreement.cannot_answer


TARGET = {"Care": 1, "SocialNorms": -1}


def row(number, mass=0.9, **score):
    scores = {name: float(score.get(name, 0.0)) for name in FOUNDATIONS}
    total = sum(math.exp(value) for value in scores.values())
    p = {name: math.exp(value) / total for name, value in scores.items()}
    return VignetteScore(str(number), "Care", scores, p, mass, 0.1, 0.0)


def arms(n=8, **others):
    toward = [row(k, Care=2.0, SocialNorms=-2.0, **others) for k in range(n)]
    return toward, [row(k, Care=-2.0, SocialNorms=2.0) for k in range(n)]


def test_a_selective_move_scores_its_mean_and_rows_that_agree_leave_no_doubt():
    found = gated_selectivity(*arms(), TARGET, base_mass=0.9)
    assert (found.value, found.low, found.high) == pytest.approx((4.0, 4.0, 4.0))
    assert (found.n, found.n_invalid, found.parts["off"]) == (8, 0, pytest.approx(0.0))


def test_movement_off_the_target_costs_a_tenth():
    """Fairness up by 7: clr_f = score_f - mean moves it by 6 and every other foundation by -1."""
    found = gated_selectivity(*arms(Fairness=7.0), TARGET, base_mass=0.9)
    off = (6.0 + 4 * 1.0) / 5
    assert found.parts["on"] == pytest.approx(4.0)
    assert found.value == pytest.approx(4.0 - 0.1 * off)


def test_lost_answer_mass_counts_squared_and_gained_mass_does_not_count():
    toward, away = arms()
    halved = [replace(one, mass=0.45) for one in toward]
    assert gated_selectivity(halved, away, TARGET, base_mass=0.9).value == pytest.approx(1.0)
    assert gated_selectivity(toward, away, TARGET, base_mass=0.5).parts["coherence"] == 1.0


def test_flips_are_changes_of_the_answer():
    toward, away = arms(n=4)
    found = signed_flips([*toward[:3], replace(away[3], id="3")], away, TARGET)
    assert found.value == pytest.approx(0.75)
    assert (found.parts["Care"], found.parts["SocialNorms"]) == (0.75, -0.75)
    assert 0.0 <= found.low < found.value < found.high <= 1.0
    assert signed_flips(toward, away, {"Care": -1}).value == -1.0


def test_what_has_no_answer_is_left_out_and_counted_but_costs_mass():
    toward, away = arms(n=4)
    toward[0] = replace(toward[0], mass=0.0, score=dict.fromkeys(FOUNDATIONS, -math.inf))
    found = gated_selectivity(toward, away, TARGET, base_mass=0.9)
    assert (found.n, found.n_invalid) == (3, 1)
    assert found.parts["coherence"] == pytest.approx(0.75)
    assert math.isfinite(found.high)


@pytest.mark.parametrize("target", [{}, {"Kindness": 1}, {"Care": 2}, dict.fromkeys(FOUNDATIONS, 1)])
def test_targets_are_checked(target):
    with pytest.raises(SettingsError):
        gated_selectivity(*arms(), target, base_mass=0.9)


def test_other_vignettes_no_answers_and_no_mass_are_refused():
    toward, away = arms()
    with pytest.raises(SettingsError, match="different vignettes"):
        signed_flips(toward, away[1:], TARGET)
    with pytest.raises(SettingsError, match="answered in both"):
        signed_flips([replace(one, mass=0.0) for one in toward], away, TARGET)
    with pytest.raises(SettingsError, match="answer mass"):
        gated_selectivity(toward, away, TARGET, base_mass=0.0)


VIGNETTES = [
    Vignette("a", "Care", "You see someone kick a dog.", "other_violate"),
    Vignette("b", "Liberty", "You see a man.", "other_violate"),
]
THINKING = tinymfv.frame(6)


def read_at_once(lm, prompt, after, n_thought, avoid, directions, row_L):
    """Token after token over the whole text, with no cache."""
    ids = list(prompt)
    with torch.no_grad(), steer(lm.blocks, directions, row_L[None]):
        for _ in range(n_thought):
            logits = lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
            logits[sorted(avoid)] = -torch.inf
            ids.append(int(logits.argmax()))
        return lm.model(input_ids=torch.tensor([[*ids, *after]])).logits[0, -4:]


def test_thought_and_rest_in_one_cache_are_the_whole_text_read_at_once(arch):
    lm = tiny.shared(arch)
    prompts, after = [[2, 9, 30, 31, 40], [2, 41, 42]], (33, 34, 35, 36, 37)
    directions = tiny.directions(lm)
    rows_BL = torch.cat([coefficients(4, (1, 2), 2.0), coefficients(4, (), 0.0)])
    asked = [forward.Asked(tuple(prompt), dose=dose) for dose, prompt in enumerate(prompts)]
    for kind in (OurForward, PlainForward):
        with torch.inference_mode():
            found = {}
            for numbers, rows in kind(lm, directions).read(asked, rows_BL, room=5 + len(after)):
                think(rows, 5, lm.eos_ids, after, 4)
                found |= zip(numbers, rows.logits(slice(None)), strict=True)
        for row, prompt in enumerate(prompts):
            expected = read_at_once(lm, prompt, after, 5, lm.eos_ids, directions, rows_BL[row])
            assert_near(found[row], expected, model_rounding(lm))


def test_the_question_is_opened_once_and_ends_as_a_turn_of_its_own():
    lm = tiny.shared("gemma3")
    first, reverse = ask(Asking(lm, torch.zeros(1, 4), torch.zeros(4, 32)), VIGNETTES[:1], THINKING)
    text = lm.tokenizer.decode(list(first.ids))
    assert text.startswith("<bos><start_of_turn>user\nYou see someone kick a dog.\n\nHere is")
    assert text.endswith("<start_of_turn>model\n<think>\n")
    after = lm.tokenizer.decode(list(first.after))
    assert after == (
        "</think><end_of_turn>\n<bos><start_of_turn>user\nJust answer<end_of_turn>\n"
        '<start_of_turn>model\nThis is wrong because {"violation": "'
    )
    assert '"0", # It violates norms of harm' in text
    assert '"0", # It is not morally wrong' in lm.tokenizer.decode(list(reverse.ids))
    assert lm.chat.interruption("Go") == (
        "<end_of_turn>\n<start_of_turn>user\nGo<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_thought_that_the_template_opens_is_not_opened_twice():
    words = tiny.tokenizer(
        tiny.TEMPLATE.replace("<start_of_turn>model\n' }}{%- endif", "<think>\n' }}{%- endif")
    )
    lm = tiny.language_model("gemma3")
    lm.tokenizer.chat_template = words.chat_template
    (row, _) = ask(Asking(lm, torch.zeros(1, 4), torch.zeros(4, 32)), VIGNETTES[:1], THINKING)
    assert lm.tokenizer.decode(list(row.ids)).count("<think>") == 1


def test_the_reversed_lists_digits_are_turned_back():
    """A model that always says "0": Care in one order, SocialNorms in the other, nothing between."""
    lm = tiny.language_model("gemma3")
    zero = lm.encode_chat([user("?")], '"0')[-1]

    def always(_module, _inputs, output):
        logits = torch.full_like(output.logits, 0.0)
        logits[..., zero] = 9.0
        output.logits = logits
        return output

    handle = lm.model.register_forward_hook(always)
    found = evaluate(lm, VIGNETTES, THINKING)[0]
    handle.remove()
    p = found.per_vignette[0].p
    assert p["Care"] == pytest.approx(p["SocialNorms"])
    assert p["Care"] > 0.4 > p["Fairness"]
    forward = evaluate(lm, VIGNETTES, replace(THINKING, orders=("forward",)))[0]
    assert set(forward.p) == set(FOUNDATIONS)


def test_bad_frames_are_refused():
    options = tuple(f"{name} act" for name in FOUNDATIONS)
    with pytest.raises(SettingsError, match="one token each"):
        evaluate(tiny.shared("llama"), VIGNETTES, replace(THINKING, options=options, answer="word"))
    with pytest.raises(SettingsError, match="0 tokens or more"):
        tinymfv.frame(-1)
