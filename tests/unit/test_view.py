"""What the page says, and that nothing a model or a person wrote is ever markup."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest

from components import dose, view, view_dose, view_runs
from components.controls import FORM
from steer_heal.config import THRESHOLDS, DoseRequest, build
from steer_heal.heal import headline
from steer_heal.records import (
    Agreement,
    Alternative,
    CompletionRow,
    DoseRow,
    ListedModel,
    ModelInfo,
    Profile,
    RoundDetail,
    SteerFrame,
    Sweep,
    TextHealth,
    Token,
    Trait,
)
from tests.fake_engine import FORM_VALUES, FakeEngine
from tests.fake_runs import EXAMPLE

EVIL = "<img src=x onerror='a()'>\"><script>b()</script>&amp;"
INFO = ModelInfo("demo", "Gemma3ForCausalLM", 10, 160, 3_040_000, "bfloat16", "cpu", True, "small, not Gemma")
RUN = replace(
    FakeEngine().runs.rows()[0], run_id="run-1", is_example=False, status="running", rounds=3, round=1,
    stage="train", progress=0.5, eta=75.0,
)  # fmt: skip
HEALTH = TextHealth(2.6, 2.0, 0.1, 0.9, "fine", 0.5, 0.7, 0.8)
DETAIL = RoundDetail("run-1", 1, {}, {}, 0.9, 3, 4, 16.0, {}, (), {})


class Tags(HTMLParser):
    """The elements and the text of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def evil_everywhere() -> dict[str, str]:
    token = Token(1, EVIL, 0.5, kl=1.0, p_base=0.1, base_top=(Alternative(EVIL, 0.5),))
    run = replace(RUN, name=EVIL, model=EVIL, trait=EVIL, stage=EVIL, message=EVIL)
    row = CompletionRow("run-1", 1, 0, 1.0, EVIL, EVIL, False, {EVIL: 1.0}, (EVIL,))
    detail = replace(DETAIL, answers=({"prompt": EVIL, EVIL: EVIL},), settings={EVIL: EVIL}, text={EVIL: 1.0})
    return {
        "header": view.header(replace(INFO, is_demo=False, name=EVIL, note=EVIL, architecture=EVIL)),
        "models": view.models([ListedModel(EVIL, EVIL, EVIL, False, 0)]),
        "answer": view.answer((token, replace(token, kl=None)), done=True),
        "status": view.status(SteerFrame((), (), False, False, message=EVIL)),
        "error": view.error(EVIL),
        "note": view.note(EVIL),
        "runs": view_runs.runs_table([run], [EVIL], {}, {}),
        "head": view_runs.round_head(detail, run),
        "key": view_runs.map_key([run], ["run-1"], {"run-1": "A"}, "", EVIL),
        "ended": view_runs.ended_card(replace(run, status="finished"), "A"),
        "card": view_runs.card(replace(run, status="running"), "A", EVIL),
        "answers": view_runs.answers(detail),
        "settings": view_runs.settings(detail),
        "completions": view_runs.completions([row]),
    }


@pytest.mark.parametrize("where", evil_everywhere())
def test_text_is_never_markup(where: str) -> None:
    found = Tags(evil_everywhere()[where])
    assert not {"img", "script"} & set(found.tags)
    assert "onerror" not in found.attributes
    assert "<script>b()</script>" in found.text


def test_what_is_steered_is_marked_where_not_all_is() -> None:
    token = Token(1, "help", 0.6, kl=1.5)
    marks = {share: view.tokens((replace(token, share=share),)) for share in (None, 0.0, 0.25)}
    assert [share for share, html in marks.items() if "sh-at" in html] == [0.25]
    assert "steered with 25% of the dose" in marks[0.25]
    assert "itself not steered" in marks[0.0]
    assert "the answer" not in view.dose(1.0)


def test_what_a_token_carries_is_a_shade_with_a_sign_and_is_told_beside_kl() -> None:
    for carries, shade in ((0.4, "sh-t"), (0.5, "sh-t p1"), (-1.5, "sh-t n2"), (9.0, "sh-t p4")):
        html = view.tokens((Token(1, "help", 0.6, carries=carries),))
        assert f'class="{shade}"' in html
        assert f"carries {carries:+.1f} of the trait" in html
    assert 'class="sh-t k3 n3"' in view.tokens((Token(1, "help", 0.6, kl=1.5, carries=-2.0),))


def test_kl_buckets_and_durations() -> None:
    assert [view.kl_bucket(kl) for kl in (0.0, 0.099, 0.1, 0.5, 1.0, 3.9, 9.0)] == [0, 0, 1, 2, 3, 4, 5]
    said = [view.duration(seconds) for seconds in (None, float("nan"), -3, 59.4, 125, 1800, 11400)]
    assert said == ["–", "–", "0 s", "59 s", "2 min 5 s", "30 min", "3 h 10 min"]


def test_the_word_is_the_text_s_and_the_answers_have_their_own() -> None:
    frame = SteerFrame((), (), True, True, health=HEALTH)
    base = Profile({}, 1.0, 1)
    for mass, word in ((0.96, "kept"), (0.9, "weakened"), (0.5, "lost")):
        html = view.measures(frame, (base, Profile({}, mass, 1)))
        assert "sh-fine" in view.text_word(frame.health)
        assert f"answers <b>{word}</b>" in html
    broken = replace(frame, health=replace(HEALTH, verdict="broken", relevance=0.1, relevance_ratio=0.12))
    assert "sh-broken" in view.text_word(broken.health)
    why = f"relevance 0.12× base&#x27;s own, limit {THRESHOLDS.relevance_broken:g}×"
    assert f">{why}</span>" in view.text_word(broken.health)
    assert "<mark>relevance" in view.measures(broken, None)
    assert "<mark>" not in view.measures(frame, None)


def test_the_verdict_names_its_quantities_and_thresholds() -> None:
    html = view.measures(
        SteerFrame((), (), True, True, health=HEALTH, base_health=TextHealth(1.3, 1.0, 0.02, relevance=0.71)),
        (Profile({}, 1.0, 1), Profile({}, 0.98, 1)),
    )
    said, limit = Tags(html.replace("</li>", "\n")).text.splitlines(), THRESHOLDS
    times = f"damaged above {limit.perplexity_damaged:g}×, broken above {limit.perplexity_broken:g}×"
    assert said[0] == f"perplexity under base 2.6 (base's own 1.30), 2.0× base's own: {times}?"
    times = f"damaged below {limit.relevance_damaged:g}×, broken below {limit.relevance_broken:g}×"
    assert said[1] == f"relevance 0.50 nats (base's own 0.71), 0.7× base's own: {times}?"
    assert said[2] == f"variety 0.80: broken below {limit.variety_broken:g}?"
    assert said[3] == f"repetition 0.10 (base's own 0.02): broken above {limit.repetition_broken:g}?"
    times = f"weakened below {limit.mass_weakened:g}, lost below {limit.mass_lost:g}"
    assert said[4:] == [
        "95th percentile of KL 0.90 nats", f"answers kept: their mass is 0.98× base's ({times})?",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (SteerFrame((), (), False, False, waiting=3), "waiting for 3 requests ahead"),
        (SteerFrame((), (Token(1, "a", 0.5),), False, False, seconds=0.5), "writing: 1 tokens · 2 tokens/s"),
        (SteerFrame((), (Token(1, "a", 0.5),), True, True, seconds=0.5), "done: 1 tokens in 0.5 s"),
        (SteerFrame((), (), True, True, message="Stopped."), "Stopped. 0 tokens"),
    ],
)
def test_status(frame: SteerFrame, says: str) -> None:
    assert says in view.status(frame)


def test_bars_show_what_was_measured_and_the_change() -> None:
    html = view.bars(
        {"base": {"Care": 0.2, "SocialNorms": 0.6}, "steered": {"Care": 0.3, "SocialNorms": 0.5}}
    )
    assert "Loyalty" not in html
    assert "<b>x" not in view.bars({"base": {"<b>x": 1.0}})
    assert "+0.100" in html
    assert "-0.100" in html
    assert "width:100.0%" in html


@pytest.mark.parametrize(
    ("changed", "can"),
    [
        ({"status": "interrupted"}, True),
        ({"status": "failed"}, True),
        ({"status": "running"}, False),
        ({"status": "cancelled", "is_example": True}, False),
    ],
)
def test_a_run_that_ended_early_can_be_resumed_but_no_example(changed: dict, can: bool) -> None:
    assert ('data-action="resume"' in view_runs.runs_table([replace(RUN, **changed)], [], {}, {})) == can


def test_completions_are_filtered_and_not_all_are_shown() -> None:
    kept, dropped, *_ = FakeEngine().runs.completions(EXAMPLE, 1)
    assert "first." not in view_runs.completions([kept, dropped], "dropped")
    assert "and 5 more" in view_runs.completions([kept] * (view_runs.MAX_COMPLETIONS + 5))


def test_a_run_of_a_mix_says_which_wherever_it_is_named() -> None:
    run = replace(RUN, mix="0.8 warm - <b>", trait="warm", status="running")
    detail = replace(DETAIL, settings={"mix": run.mix})
    table = view_runs.runs_table([run], [], {}, {"warm": "Warm over cold"})
    assert "0.8 warm - &lt;b&gt;, measured on Warm over cold" in table
    for said in (
        view_runs.card(run, "A", ""),
        view_runs.ended_card(run, "A"),
        view_runs.round_head(detail, run),
    ):
        assert "0.8 warm - &lt;b&gt;" in said
    assert "warm" not in view_runs.card(replace(run, mix=""), "A", "")


def test_that_nobody_can_talk_to_the_example_is_said_in_its_rounds() -> None:
    heads = [view_runs.round_head(DETAIL, replace(RUN, is_example=example)) for example in (False, True)]
    assert ['data-action="talk"' in head for head in heads] == [True, False]
    assert ["came without its adapters" in head for head in heads] == [False, True]


def test_the_words_of_a_run_are_those_of_its_headlines() -> None:
    assert view_runs.WORDS == headline.ORDER
    said = view_runs.said_of("2 rounds done; round 2 too little trait kept: retention 0.2 <b>")
    assert said == "2 rounds done; round 2 <b>too little trait kept</b>: retention 0.2 &lt;b&gt;"


def test_settings_say_what_they_are_beside_their_names() -> None:
    detail = FakeEngine().runs.round(EXAMPLE, 1)
    shown = view_runs.settings(replace(detail, settings={"train": {"tau": 0.05}, "rounds": 2}))
    assert "D that costs nothing, in nats a token.</td><td>0.05</td>" in shown
    assert "<code>train.tau</code>" in shown
    assert "<code>rounds</code>" in shown


def test_empty_states_say_what_to_do() -> None:
    assert "Heal" in view_runs.runs_table([], (), {}, {})
    assert "choose another" in view_runs.completions([], "kept")


def test_the_headline_carries_its_thresholds_and_is_never_markup() -> None:
    said = {"word": "too little trait kept", "why": "retention <b>0.1</b>", "thresholds": {"spill": 1.0}}
    cost = {"facts_kept": 0.95, "neutral_kl": 0.123}
    shown = view_runs.headline({"headline": said, "retention_interval": [0.05, 0.2], **cost})
    for part in (
        "too little trait kept", "&lt;b&gt;0.1", "0.05 to 0.20", "facts kept 95%",
        "not specific: movement off the target, of the target&#x27;s own, from 1",
        "on neutral prompts 0.12 nats a token",
    ):  # fmt: skip
        assert part in shown
    assert view_runs.headline({}) == ""


def test_the_answer_mass_of_a_model_that_cannot_answer_judges_nothing() -> None:
    frame = SteerFrame((), (), True, True, health=HEALTH)
    silent = Profile({}, 1.0, 1, agreement=Agreement(0.14, 0.1, 0.2, 1 / 7))
    assert "answers" not in view.measures(frame, (silent, Profile({}, 0.1, 1)))
    assert "answers" not in view.measures(frame, (Profile({}, None, 1), Profile({}, None, 1)))
    said = view.worth(silent.agreement, "<choice>")
    assert "this model cannot answer this question: agreement 0.14 (0.10-0.20)" in said
    assert "frame &lt;choice&gt;" in said
    assert view.worth(Agreement(), "choice") == ""


def test_a_round_s_bars_say_what_each_stage_is_worth() -> None:
    worth = {"base": Agreement(0.53, 0.46, 0.6, 1 / 7), "healed": Agreement()}
    detail = replace(DETAIL, profiles={"base": {}, "healed": {}}, worth=worth, frame="cloze")
    html = view_runs.profile_bars(detail)
    assert html.count("agreement 0.53 (0.46-0.60), chance 0.14, frame cloze") == 1


def test_each_printed_answer_has_its_word_and_the_loops_are_counted() -> None:
    said = {"prompt": "Who?", "base": "Me.", "steered": "You.", "healed": "I I I"}
    words = {"base": "fine", "steered": "", "healed": "loops"}
    detail = replace(DETAIL, answers=(said, said), words=(words, words | {"base": "loops"}))
    table = view_runs.answers(detail)
    assert table.count("broken: loops") == 3
    assert table.count(">fine<") == 1
    count = "of 2 printed (greedy) answers loop: base <b>1</b>, steered <b>0</b>, healed <b>2</b>"
    assert count in view_runs.round_head(detail, RUN)


def test_two_rounds_side_by_side_show_what_differs_as_text() -> None:
    runs = FakeEngine().runs
    one = runs.round(EXAMPLE, 1)
    other = replace(one, round=2, settings={**one.settings, "seed": 7, "name": "<b>"}, retention=0.5)
    shown = view_runs.compare(one, other, ("<i>", "second"))
    assert "&lt;i&gt; · round 1" in shown
    assert "<tr><th>seed</th><td>0</td><td>7</td></tr>" in shown
    assert "<th>trait</th>" not in shown
    assert "<th>name</th>" not in shown
    assert "&lt;b&gt;I would help&lt;/b&gt;" in shown


def test_a_run_keeps_its_letter_and_time_left_is_no_more_exact_than_it_is_known() -> None:
    (row,) = FakeEngine().runs.rows()
    others = [replace(row, run_id=f"r{i}", is_example=False, started_at=float(i)) for i in range(702)]
    marks = view_runs.letters([*reversed(others), row])
    found = [marks[name] for name in (row.run_id, "r0", "r24", "r25", "r700", "r701")]
    assert found == ["A", "B", "Z", "AA", "ZZ", "AAA"]
    assert view_runs.letters([*others[:5], row]).items() <= marks.items()
    said = [view_runs.about(seconds) for seconds in (None, 20.0, 130.0)]
    assert said == ["", " · less than a minute left", " · about 2 min left"]


def test_a_made_trait_shows_what_it_is_measured_by():
    of_two_words = Trait("x", "Odd", "", "odd", "<b>", {"odd": 1, "<b>": -1}, statements=(("1", "<i>"),))
    shown = view.made(of_two_words)
    assert "Odd is chosen" in shown
    assert "<tr><td>1</td><td>&lt;i&gt;</td></tr>" in shown
    assert "<th>&lt;b&gt;</th>" in shown
    assert "<details>" not in view.made(replace(of_two_words, statements=()))


DOSES = [[-2.0, "broken"], [0.0, "fine"], [1.0, "fine"], [3.0, "damaged"], [8.0, "broken"]]


def test_each_dose_speaks_for_what_is_nearest_to_it() -> None:
    assert view_dose.segments(DOSES) == [
        (-2.0, -1.0, "broken"),
        (-1.0, 2.0, "fine"),
        (2.0, 4.0, "damaged"),
    ]
    assert view_dose.segments(DOSES[:1]) == []


def test_the_strip_says_it_in_words_too() -> None:
    html = view_dose.strip({"here": DOSES}, "here")
    assert "alpha 2 to 4 damaged" in html
    assert 'class="sh-seg-fine" style="left:37.50%;width:37.50%"' in html
    assert "not measured" in view_dose.strip({"here": DOSES}, "elsewhere")


def test_the_layers_that_move_the_trait_most_are_named() -> None:
    def cell(band: tuple[float, float], moved: float | None, verdict: str = "fine", alpha: float = 1.0):
        return DoseRow(alpha, band, None, None, None, None, None, moved, verdict)  # type: ignore[arg-type]

    def layers(band: tuple[float, float]) -> tuple[int, ...]:
        return tuple(range(int(band[0]), int(band[1])))

    cells = [
        cell((0, 1), 0.1), cell((1, 2), 0.69), cell((2, 3), 0.7, "damaged"), cell((3, 4), 0.9, "broken"),
        cell((3, 4), 2.0, alpha=2.0), cell((0, 3), 0.5), cell((1, 4), 0.6),
    ]  # fmt: skip
    said = view_dose.layers_found(cells, layers)
    assert "layer 2 alone moves the trait most: +0.70, damaged; within 0.03 of it: 1. " in said
    assert "Of neighbours together 1 to 3 do: +0.60, fine" in said
    assert view_dose.layers_found([cell((0, 1), None)], layers) == ""


def test_a_browser_may_send_anything() -> None:
    odd = ([[1.0, "<b>"]], [["1", "broken"]], [[float("nan"), "broken"]], [[1.0, ["broken"]]])
    for value in (None, 3, [], {"a": 3}, *({"a": one} for one in odd)):
        assert view_dose.remembered(value) == {}


def test_the_newest_sweeps_are_remembered() -> None:
    rows = list(FakeEngine(delay=0.0).dose(build(DoseRequest), session="x"))[-1].rows
    kept: Any = None
    for number in range(view_dose.MAX_KNOWN + 3):
        kept = view_dose.remember(kept, str(number), rows)
    assert len(kept) == view_dose.MAX_KNOWN
    assert list(kept)[-1] == str(number)
    assert view_dose.remembered(kept) == kept


def pressed(handler: Any, over: str = dose.IN_VIEW, **changed: Any) -> Iterator[Any]:
    form = [{**FORM_VALUES, **changed}[name] for name in FORM]
    return handler(SimpleNamespace(session_hash="me"), over, {}, *form)


def notes(shown: Iterable[Any]) -> list[str]:
    return [row[1] for row in shown if isinstance(row[1], str)]


def test_a_mix_is_measured_as_it_is_steered_and_shown_beside_its_controls() -> None:
    panel, mix = dose.Panel(FakeEngine(delay=0.0)), "care_over_authority - 0.5 candour_over_tact @answer"
    *_, (_, note, strip, kept), _ = pressed(panel.handler(panel.sweep, 4), mix=mix)
    assert f", {mix}: the text is damaged" in note
    assert "of 8 random directions of the same KL move it as far" in note
    assert "Of the texts was steered: answer only; the trait" in note
    assert "sh-seg-broken" in strip
    assert f"|1 {mix}|" in next(iter(kept))
    *_, (shown, note), _ = pressed(panel.handler(panel.effect, 2), mix=mix)
    assert f", {mix}." in note
    assert "0 of 8 random directions of the same KL move it as far" in shown
    assert shown.count('class="sh-random"') == 7
    places = re.findall(r'class="sh-moved" style="left:(.+?)%;width:(.+?)%"', shown)
    assert len(places) == 7
    assert all(float(left) >= 0 and float(left) + float(width) <= 100 for left, width in places)
    assert "makes likelier: <b>help, &lt;b&gt;kind</b>" in shown
    assert "<td>A &lt;i&gt;scene&lt;/i&gt;?</td>" in shown


def test_a_set_asks_vignettes_of_every_foundation() -> None:
    asked = dose.Asked(FORM_VALUES | {"band": (0.4, 0.6)}, "7 vignettes", {}, "me")
    assert len(dose.Panel(FakeEngine()).request(asked, dose.SWEEP_ALPHAS, refine=True).prompts) == 7


@pytest.mark.parametrize(
    ("n", "says"), [(4, "Stopped: 2 doses measured."), (25, "random directions.*Stopped: 6 cells measured")]
)
def test_a_stop_ends_doses_and_layers(n: int, says: str) -> None:
    panel = dose.Panel(FakeEngine(delay=0.0))
    shown = pressed(panel.handler(panel.made, 5))
    early = [next(shown) for _ in range(n)]
    panel.engine.stop(dose.work_of("me"))
    rest = notes([*early, *shown])
    assert re.search(says, rest[-1])
    assert any("cells measured" in note for note in rest) is (n > 4)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"low": None}, "a layer is empty"),
        ({"high": 10}, "leaves the model"),
    ],
)
def test_bad_input_is_one_sentence(changed: dict[str, Any], says: str) -> None:
    panel = dose.Panel(FakeEngine(delay=0.0))
    *_, last = notes(pressed(panel.handler(panel.sweep, 4), **changed))
    assert says in last
    assert "sh-error" in last


def test_the_newer_press_takes_the_place_of_the_older() -> None:
    panel = dose.Panel(FakeEngine(delay=0.0))
    older = pressed(panel.handler(panel.sweep, 4))
    next(older)
    assert "126 cells" in notes(pressed(panel.handler(panel.grid, 2)))[-1]
    assert notes(older) == []


def test_a_click_sets_alpha_and_the_band() -> None:
    def click(**data: Any) -> Any:
        return dose.Panel(FakeEngine()).steer_to(SimpleNamespace(_data=data))  # pyright: ignore[reportArgumentType]

    assert click(alpha=6.0, low=0.1, high=0.4) == (4.0, 6.0, 1, 3)
    assert click(alpha=-2.0)[:2] == (-2.0, -2.0)
    assert all(not isinstance(value, float) for value in click(alpha="<b>"))


@pytest.mark.parametrize(
    ("word", "breaks", "agreement", "says"),
    [
        ("kept", {}, 0.9, "the text is fine up to alpha 1; answers are kept up to alpha 1."),
        ("lost", {"damaged": 0.5, "lost": 1}, 0.9, "damaged from alpha 0.5; answers are lost from alpha 1."),
        (None, {"broken": 1.0}, 0.9, "broken from alpha 1; agreement 0.90 (0.80-1.00), chance 0.14, frame"),
        (None, {}, 0.1, "alpha 1; this model cannot answer this question: agreement 0.10"),
    ],
)  # fmt: skip
def test_what_a_sweep_found_leads_with_the_text(word, breaks, agreement, says) -> None:
    row = DoseRow(1.0, (0.4, 0.6), None, None, None, None, None, None, "fine", answers_verdict=word)
    worth = Agreement(agreement, agreement - 0.1, agreement + 0.1, 1 / 7)
    reading = Profile({}, None, 70, frame="cloze", agreement=worth)
    assert says in view_dose.found(Sweep(1.0, [row], breaks, reading=reading), {})
