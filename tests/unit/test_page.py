"""The page without a browser: what it imports, who wins, what a browser may send, ports."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

import pytest

from components import charts_sweep, heal, moral_map, runs, sweeps, view_sweeps, watching
from components.access import bind
from components.address import keep, read
from components.controls import FORM as FIELDS
from components.controls import band, composed, ends, layers_of, measured, offer, recall, sound, spread
from components.page import build
from components.talking import Exchange, messages, request, steering
from steer_heal.config import (
    LOCAL,
    MAX_SWEEP_RUNS,
    DataSettings,
    RunSweep,
    SettingsError,
    TrainSettings,
    axes,
    changed,
    describe_settings,
    heal_settings,
)
from steer_heal.records import Spoken, SweepForecast, TextHealth, Token
from tests.fake_engine import FORM_VALUES, FakeEngine
from tests.fake_runs import EXAMPLE
from tests.jobs import until

FORM = heal.Form("care_over_authority", 0.4, 0.6, rounds=2)
FULL = replace(FORM, completions=32, vignettes=14, epochs=3)


def test_handlers_have_no_place_for_progress_and_those_with_a_name_alone_are_public_endpoints() -> None:
    fns = build(FakeEngine()).fns.values()
    assert all(fn.show_progress_on == [] for fn in fns if fn.api_visibility == "private" and fn.outputs)
    public = {fn.api_name for fn in fns if fn.api_visibility != "private"}
    assert public == {
        *("describe", "make_trait", "steer", "profile", "sweep", "effect", "launch", "watch", "cancel"),
        *("pause", "resume", "clone", "runs", "moral_map", "talk"),
        *("start_sweep", "list_sweeps", "sweep_table", "stop_sweep", "resume_sweep"),
    }


def test_the_vignettes_offered_are_those_of_the_loaded_model() -> None:
    vignettes = FakeEngine().vignettes()
    own = next(v for v in vignettes if v.foundation == "Liberty")
    foundation, chooser = offer(vignettes, own.text)
    assert (foundation, chooser["value"]) == ("Liberty", own.id)
    assert {shown for _, shown in chooser["choices"]} == {
        v.id for v in vignettes if v.foundation == "Liberty"
    }
    foundation, chooser = offer(vignettes, "What somebody typed.")
    assert (foundation, chooser["value"]) == (vignettes[0].foundation, None)
    assert chooser["choices"]


def test_a_browser_that_remembers_nothing_is_asked_the_loaded_model_s_first_vignette() -> None:
    first = FakeEngine().vignettes()[0]
    restored = recall({}, FakeEngine())
    assert restored[1]["value"] == first.id
    assert restored[3 + FIELDS.index("prompt")] == first.text
    kept = recall({"prompt": "Mine.", "exact": 7.0, "seed": -1}, FakeEngine())
    assert (kept[1]["value"], kept[2]) == (None, 4.0)
    assert kept[3 + FIELDS.index("prompt")] == "Mine."


def test_a_mix_is_said_by_hand_or_typed() -> None:
    engine = FakeEngine()
    by_hand = ("care_over_authority", 0.8, None, 0, "ablate candour_over_tact", -0.4, "", 1)
    said = composed("old @ first 8", *by_hand)
    assert said == "0.8 care_over_authority - 0.4 ablate candour_over_tact @first 8"
    vectors, doses = (spread(engine, said)[at::2] for at in (0, 1))
    assert [update["value"] for update in vectors] == [*by_hand[::4][:1], by_hand[4], None, None]
    assert doses == [0.8, -0.4, 0.0, 0.0]
    assert composed("@answer", *[None, 0] * 4) == ""
    assert len(spread(engine, "0.8 care +")) == 8


def test_what_is_steered_with_is_healed_and_measured() -> None:
    engine, mix = FakeEngine(), "0.3 care_over_authority + 0.8 candour_over_tact @answer"
    made = replace(FORM, mix=mix).settings("demo")
    assert (made.mix, made.gate) == (mix, "answer")
    assert heal.Form.of(made).mix == mix
    assert measured(engine, mix, "care_over_authority") == "care_over_authority"
    assert measured(engine, "0.3 candour_over", "care_over_authority") == "care_over_authority"
    assert measured(engine, mix, "another") == "candour_over_tact"
    with pytest.raises(SettingsError, match="choose candour_over_tact or care_over_authority as trait"):
        replace(FORM, mix=mix, trait="another").settings("demo")


@pytest.mark.parametrize(
    "kept", [None, 3, [], {"runs": 3, "open": 4}, {"runs": [1], "open": ["a"]}, {"open": [1, 2]}]
)
def test_a_browser_may_send_anything(kept: object) -> None:
    engine = FakeEngine()
    nothing = {"runs": None, "open": None, "all": False, "older": False, "mine": None, "sweep": None}
    assert watching.remembered(kept) == nothing
    assert watching.shown(engine.runs.rows(), kept, "demo") == [EXAMPLE]
    assert "Click a node" in moral_map.open_round(engine, kept)[0]


def test_an_unknown_round_says_what_to_do() -> None:
    for place in (["../../etc", 1], [EXAMPLE, 99], ["gone-run", 1]):
        assert "sh-error" in moral_map.open_round(FakeEngine(), {"runs": None, "open": place})[0]


def test_the_card_of_a_run_that_is_opened_too_early_or_failed_stays() -> None:
    engine = FakeEngine(round_seconds=1000)
    run_id = engine.launch(heal_settings("quick", model="demo", name="mine"))
    memory = watching.started(watching.remembered(None), run_id)
    clicked = SimpleNamespace(_data={"action": "open", "run": run_id})
    memory, _ = runs.acting(engine)(memory, clicked)
    assert memory["mine"] == run_id
    every = [replace(engine.runs.rows()[0], status="failed", message="no better than random: ...")]
    cards = watching.draw(engine, every, memory)[2]
    assert "mine: failed" in cards
    assert 'data-action="anyway"' in cards
    again, _ = runs.acting(engine)(memory, SimpleNamespace(_data={"action": "anyway", "run": run_id}))
    assert again["mine"] != run_id
    assert engine.runs.settings(again["mine"]).evaluate.controls == 0


def test_the_very_same_run_again_is_said_to_be_one() -> None:
    engine, wanted = FakeEngine(), heal_settings("quick", model="demo", rounds=2, name="again")
    assert "As Example: care over authority" in heal.alike(engine, wanted)
    assert heal.alike(engine, wanted.model_copy(update={"seed": 1})) == ""


def test_of_many_runs_the_table_shows_the_newest_and_those_that_matter_until_all_are_wanted() -> None:
    (row,) = FakeEngine().runs.rows()
    many = [replace(row, run_id=f"r{i}", is_example=False) for i in range(watching.MAX_ROWS + 5)]
    many[-1] = replace(many[-1], status="queued")
    every = [*many, row]
    some = watching.recent(every, [many[-2].run_id])
    assert some == [*many[: watching.MAX_ROWS], *many[-2:], row]
    first = watching.remembered({"runs": []})
    kept, _ = runs.acting(FakeEngine())(first, SimpleNamespace(_data={"action": "older"}))  # type: ignore[arg-type]
    for memory, n_left_out, says in ((first, 4, "show 4 older"), (kept, 0, "leave out older ones")):
        table = watching.draw(FakeEngine(), every, memory)[3]
        assert table.count("<tr data-run") == len(every) - n_left_out
        assert says in table


def test_what_cannot_be_done_with_a_run_is_said_in_its_place() -> None:
    clicked = SimpleNamespace(_data={"action": "cancel", "run": "<x>"})
    _, message = runs.acting(FakeEngine())(None, clicked)  # type: ignore[arg-type]
    assert "sh-error" in message


def test_the_form_becomes_settings() -> None:
    settings = FULL.settings("demo")
    assert (settings.rounds, settings.data.n_answers, settings.evaluate.n_vignettes) == (2, 32, 14)
    assert settings.train.epochs == 3
    assert FORM.settings("demo").data == heal_settings("quick", model="demo").data
    assert replace(FORM, where="answer").settings("demo").data.where == "answer"
    assert replace(FORM, completions=0, vignettes=0, epochs=0).settings("demo") == FORM.settings("demo")
    chosen = replace(FORM, method="pca", vignette_file=" v.jsonl ").settings("demo")
    assert (chosen.extract.method, chosen.evaluate.vignettes) == ("pca", "v.jsonl")


def test_a_clone_fills_the_form_and_keeps_what_is_not_on_it() -> None:
    basis = heal_settings(
        rounds=5, seed=3, band=(0.2, 0.7), name="first", model="elsewhere",
        train={"lam": 0.7, "epochs": 3}, data={"n_answers": 40, "min_kept": 9},
    )  # fmt: skip
    form = heal.Form.of(basis)
    assert form.settings("demo", basis) == changed(basis, name="first again")
    other = replace(form, rounds=2, completions=16).settings("demo", basis)
    assert (other.rounds, other.data.n_answers, other.data.min_kept) == (2, 16, 2)
    assert (other.train.lam, other.model) == (0.7, "elsewhere")


@pytest.mark.parametrize("rounds", [None, 0, 1000])
def test_bad_rounds_are_refused_in_one_sentence(rounds: float | None) -> None:
    with pytest.raises(SettingsError, match="rounds"):
        replace(FORM, rounds=rounds).settings("demo")


def test_what_cannot_be_listened_on_is_one_sentence() -> None:
    with bind("127.0.0.1", 0) as taken:
        in_use = taken.getsockname()[1]
        for host, port in (("127.0.0.1", in_use), ("127.0.0.1", 70000), ("no.such.host.invalid", 0)):
            with pytest.raises(SettingsError, match="--port"):
                bind(host, port)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("prompt", "hello", ["", 3, "x" * 9000]),
        ("trait", "care", ["unknown", None, ["care"]]),
        ("exact", -1.5, ["1", 1e9, float("nan"), True, None]),
        ("low", 0.4, [-0.1, 1.5]),
        ("length", 60, [0, 10_000]),
        ("seed", 7, [-1, 2**31]),
        ("greedy", True, [1, "true"]),
        ("temperature", "0", ["-0.1", "10.5", "hot", "nan", "", 0.7, None]),
        ("top_p", "0.9", ["-1", "1.5", None]),
        ("top_k", "-1", ["-2", True, None]),
        ("method", "pca", [None, 3, "x" * 81]),
    ],
)
def test_only_sound_values_are_put_back_into_the_form(name: str, good: object, bad: list[object]) -> None:
    assert name in FIELDS
    assert sound(name, good, {"care"})
    assert [value for value in bad if sound(name, value, {"care"})] == []


def test_any_setting_can_be_named_on_the_form() -> None:
    named = "train.lam=0.5\n\ntrain.divergence = kl_fwd\ndata.alphas=[1, 1.5]"
    chosen = replace(FULL, others=named).settings("demo")
    assert (chosen.train.lam, chosen.train.divergence, chosen.train.epochs) == (0.5, "kl_fwd", 3)
    assert chosen.data.alphas == (1.0, 1.5)
    assert chosen.data.n_answers == 32
    for wrong in ("lam=1", "train.lamb=1", "train.lam", "train.lam=much"):
        with pytest.raises(SettingsError):
            replace(FORM, others=wrong).settings("demo")


def test_every_setting_of_the_method_is_told_with_its_default() -> None:
    names = {name: default for name, default, _ in describe_settings()}
    assert names["train.lam"] == str(TrainSettings().lam)
    assert {f"data.{name}" for name in DataSettings.model_fields} <= set(names)


def test_a_band_is_kept_in_shares_of_depth_and_shown_as_whole_layers() -> None:
    engine = FakeEngine()
    for first, last, shares in ((4, 5, (0.4, 0.6)), (7, 7, (0.7, 0.8)), (3, 0, (0.0, 0.4))):
        assert band(engine, first, last) == pytest.approx(shares)
        assert ends(engine, band(engine, first, last)) == tuple(sorted((first, last)))
    shown = recall({"low": 0.0, "high": 1.0}, engine)
    layers = [shown[3 + FIELDS.index(name)]["value"] for name in ("low", "high")]
    assert layers == [0, 9]
    assert layers_of(engine, {"low": "<b>", "high": 7})["high"]["value"] == 5


def opened(query):
    return read(dict(parse_qsl(query)))


def test_an_address_holds_the_view():
    assert opened(
        "model=demo&trait=t&prompt=Hi+there&band=0.25-0.5&alpha=-1.5&seed=7&length=60&greedy=1"
        "&temperature=0.3&top_p=1&top_k=40&where=first+8&mix=0.8+warm+-+formal+%40answer"
    ) == {
        "trait": "t",
        "prompt": "Hi there",
        "low": 0.25,
        "high": 0.5,
        "exact": -1.5,
        "seed": 7,
        "length": 60,
        "greedy": True,
        "temperature": "0.3",
        "top_p": "1",
        "top_k": "40",
        "where": "first 8",
        "mix": "0.8 warm - formal @answer",
    }


@pytest.mark.parametrize("query", ["", "alpha=nan", "band=a-b", "seed=", "unknown=1", "band=0.4"])
def test_what_cannot_be_read_is_left_out(query):
    assert opened(query) == {}


def test_a_method_that_was_chosen_stands_in_the_address_and_none_means_the_model_s_own():
    assert opened("method=mean_diff") == {"method": "mean_diff", "greedy": False}
    assert "method" not in opened("alpha=1")
    assert "if (form.method !== 'auto') view.set('method', form.method)" in keep(FIELDS)


FINE = TextHealth(1.0, 1.0, 0.0)
SAID = (
    Exchange("# one", {"base": (spoken := (Spoken((Token(0, "<b>dull</b>", 1.0),), FINE),))}, 0, "alpha 1"),
    Exchange("two", {"base": spoken, "steered": (Spoken((Token(0, "kind", 1.0),), FINE),)}),
)
FILLED = {name: FORM_VALUES[name] for name in FIELDS} | {"band": (0.4, 0.6)}


def test_each_voice_goes_on_from_its_own_answers_and_a_later_one_from_the_first_voice_s() -> None:
    given = messages(SAID, "steered", "three")
    assert [one["content"] for one in given] == ["# one", "<b>dull</b>", "two", "kind", "three"]
    assert [one["role"] for one in given] == ["user", "assistant"] * 2 + ["user"]
    assert messages(SAID, "a-run/2", "x")[3]["content"] == "<b>dull</b>"


def test_the_form_becomes_a_request() -> None:
    asked = request(SAID, "three", 2, ["base", "steered", "a-run/2"], 3, FILLED)
    assert [(one.alpha, one.run, one.round) for one in asked.voices] == [
        (0.0, "", 0),
        (1.0, "", 0),
        (0.0, "a-run", 2),
    ]
    assert (asked.n, asked.sample.seed) == (3, len(SAID) + 2)
    assert steering(asked, ["base", "steered", "a-run/2"]) == (
        "alpha 1 of care_over_authority, prompt and answer"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": " "}, "There is no message"),
        ({"names": []}, "Nobody is chosen"),
        ({"names": ["base"] * 5}, "at most 4"),
        ({"names": ["a/x"]}, "is nobody who answers"),
        ({"form": FILLED | {"exact": None}}, "alpha is empty"),
    ],
)
def test_what_cannot_be_asked_is_said(changes: dict, said: str) -> None:
    asked = {"before": (), "text": "x", "take": 0, "names": ["base"], "n": 1, "form": FILLED} | changes
    with pytest.raises(SettingsError, match=said):
        request(**asked)


BASE = heal_settings("quick", model="demo", rounds=1)
EVIL = "<img src=x onerror='a()'>"


def started(engine: FakeEngine, *texts: str) -> RunSweep:
    return engine.sweeps.start(BASE, axes.parse(texts), budget=10)


def finished(engine: FakeEngine) -> FakeEngine:
    until(lambda: all(row.status == "finished" for row in engine.runs.rows()))
    return engine


def drawn(engine: FakeEngine, kept: Any) -> tuple[str, str, str | None]:
    return sweeps.draw(engine, engine.runs.rows(), kept)


def clicked(engine: FakeEngine, kept: Any, action: str, sweep: str) -> tuple[Any, str]:
    event = SimpleNamespace(_data={"action": action, "run": sweep})
    return sweeps.acting(engine)(kept, event)  # type: ignore[arg-type]


def test_axes_are_lines_and_a_budget_left_empty_is_said() -> None:
    assert sweeps.read("seed=0,1\n\n  train.lam = 1, 2 ", 4) == {"seed": [0, 1], "train.lam": [1, 2]}
    bad = (("seed=0..3", 3, "more than the 3"), ("seed=0", None, "1 to"), ("x=1", 9, "no setting"))
    for text, budget, said in bad:
        with pytest.raises(SettingsError, match=said):
            sweeps.read(text, budget)


def test_what_a_sweep_takes_is_said_beforehand_where_it_is_known() -> None:
    told = view_sweeps.takes(SweepForecast(9, (EVIL,), 2, 3, 750.0, 400_000_000, 7_900_000_000), LOCAL)
    for said in ("9 runs, 2 at a time.", "about 12 min", "0.4 GB a run; 7.9 GB are free", "1 cannot run"):
        assert said in told
    assert "<img" not in told
    there = view_sweeps.takes(SweepForecast(1, (), 4, 0, None, None, None), "ray://head:1")
    assert "1 run, 4 at a time on ray://head:1. Time: not known" in there
    assert "free" not in there


def test_a_sweep_is_listed_opened_shown_as_one_stopped_and_resumed() -> None:
    engine = FakeEngine(round_seconds=1e6)
    assert drawn(engine, None) == ("", "", None)
    sweep = started(engine, "seed=0,1")
    listed, table, figure = drawn(engine, None)
    assert ("2 running" in listed, table, figure) == (True, "", None)
    assert 'data-action="stop-sweep" data-sure="Cancel the runs of this sweep' in listed
    assert "resume-sweep" not in listed
    kept, said = clicked(engine, {"runs": [EXAMPLE]}, "show-sweep", sweep.sweep_id)
    assert (set(kept["runs"]), said) == ({EXAMPLE, *sweep.run_ids}, "")
    assert 'aria-checked="true"' in drawn(engine, kept)[0]
    assert clicked(engine, kept, "show-sweep", sweep.sweep_id)[0]["runs"] == [EXAMPLE]
    clicked(engine, kept, "stop-sweep", sweep.sweep_id)
    stopped = drawn(engine, None)[0]
    assert "2 cancelled" in stopped
    assert 'data-action="resume-sweep"' in stopped
    assert "stop-sweep" not in stopped
    clicked(engine, kept, "resume-sweep", sweep.sweep_id)
    assert "2 running" in drawn(engine, None)[0]
    kept, _ = clicked(engine, kept, "open-sweep", sweep.sweep_id)
    assert "nothing to compare" in drawn(engine, kept)[1]
    assert clicked(engine, kept, "open-sweep", sweep.sweep_id)[0]["sweep"] is None
    assert "sh-error" in clicked(engine, None, "stop-sweep", "../etc")[1]
    assert watching.remembered({"sweep": 3})["sweep"] is None


def test_the_open_sweep_is_a_table_and_a_chart_with_what_it_is_held_against() -> None:
    engine = FakeEngine(round_seconds=0.01)
    sweep = started(engine, "train.divergence=nll,kl_rev", "seed=0,1,-1")
    finished(engine)
    listed, table, figure = drawn(engine, {"sweep": sweep.sweep_id})
    assert "4 finished, 2 skipped" in listed or "2 skipped, 4 finished" in listed
    assert "train.divergence=kl_rev" in table
    assert "no different" in table
    assert figure is not None
    for said in ("persona as text", "furthest random direction", '"front"', "settings"):
        assert said in figure


def test_the_front_is_what_no_other_equals_with_less_damage_or_more_movement() -> None:
    points = [(0.2, 0.5), (0.1, 0.3), (0.3, 0.5), (0.1, 0.2), (0.4, 0.6), (0.1, 0.3)]
    assert charts_sweep.front(points) == [1, 0, 4]
    assert charts_sweep.front([]) == []


def test_a_run_is_held_against_the_furthest_random_direction_of_its_own_trait() -> None:
    engine = FakeEngine()
    nodes, controls = engine.runs.map([EXAMPLE]), engine.runs.controls([EXAMPLE])
    target = {"Care": 1, "SocialNorms": -1}
    found = charts_sweep.held_against(nodes, controls, {"care_over_authority": target})
    assert found == pytest.approx({"random": 0.045, "persona": 0.5})
    assert charts_sweep.held_against(nodes, controls, {}) == {}


def test_what_a_person_wrote_is_no_markup() -> None:
    engine = FakeEngine(round_seconds=0.01)
    varied = {"trait": [EVIL, "care_over_authority", {"{0}": EVIL}]}
    made = finished(engine).sweeps.start(BASE, varied, budget=MAX_SWEEP_RUNS)
    finished(engine)
    listed, table, figure = drawn(engine, {"sweep": made.sweep_id})
    assert "&lt;img" in table
    assert "<img" not in listed + table + (figure or "")
