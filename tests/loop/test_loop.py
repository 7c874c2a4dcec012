"""The whole loop on a tiny model with random weights: events, resume, stop, failure, the base untouched."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from steer_heal import data, heal
from steer_heal.config import SettingsError, TrainSettings
from steer_heal.data import own_traits
from steer_heal.evaluate.choice import evaluate
from steer_heal.heal import algorithm, cost, measure
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.measure import Measures
from steer_heal.heal.progress import live
from steer_heal.models import band_layers
from steer_heal.records import (
    Agreement,
    Completion,
    Controls,
    Event,
    FilterVerdict,
    Stopped,
    Token,
    trait_shift,
)
from steer_heal.runs.events import EventLog, plain, read
from steer_heal.vectors import vector
from steer_heal.vectors.steering import steer
from tests import tiny
from tests.rounds import tiny_run as fast


@pytest.fixture(autouse=True, scope="module")
def facts_asked_once():
    """How often they are told is for `unit/test_cost.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "TRIES", 1)
        yield


def model():
    return tiny.language_model("llama", n_layers=4)


def play(folder, settings=None, **more):
    """Every event of a run, logged to its folder as a worker does."""
    lm = more.pop("lm", None) or model()
    with EventLog(folder / "events.jsonl") as log:
        return [log.append(*event) for event in heal.run(lm, settings or fast(), folder, **more)]


def numbers(events):
    """What has to be the same in two runs: everything but clocks and progress."""
    drop = {"seconds"}
    return [
        (event.kind, event.round, {key: value for key, value in event.data.items() if key not in drop})
        for event in events
        if event.kind != "progress"
    ]


def of_kind(events, kind):
    return [event for event in events if event.kind == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, play(folder)


def test_the_events_of_a_run_in_their_order(whole):
    folder, events = whole
    begun = [(event.round, event.data["stage"]) for event in of_kind(events, "stage")]
    assert begun == [(0, "base"), *((round_, stage) for round_ in (1, 2) for stage in heal.STAGES[1:])]
    stages = [(event.round, event.data["stage"], event.data["alpha"]) for event in of_kind(events, "profile")]
    assert stages == [(0, "base", 0.0), (1, "steered", 1.0), (1, "healed", 0.0), (2, "healed", 0.0)]
    assert len(of_kind(events, "completion")) == 16
    assert [event.round for event in of_kind(events, "answers")] == [0, 1, 2]
    adapters = [event.data["adapter"] for event in of_kind(events, "round")]
    assert adapters == ["adapters/round-1", "adapters/round-2"]
    assert events[-1].kind == "finished"
    for round_ in (1, 2):
        assert (folder / "vectors" / f"round-{round_}.safetensors").is_file()
        assert (folder / "adapters" / f"round-{round_}" / "adapter_model.safetensors").is_file()


def test_retention_is_trait_moved_by_healing_over_trait_moved_by_steering(whole):
    _, events = whole
    p = {(event.round, event.data["stage"]): event.data["p"] for event in of_kind(events, "profile")}

    def moved(key):
        return p[key]["Care"] - p[0, "base"]["Care"] - p[key]["SocialNorms"] + p[0, "base"]["SocialNorms"]

    for event in of_kind(events, "round"):
        wanted = moved((event.round, "healed")) / moved((1, "steered"))
        assert event.data["retention"] == pytest.approx(wanted, rel=1e-6)


def test_a_round_is_held_against_what_steering_alone_does(whole):
    (curve,) = of_kind(whole[1], "curve")
    assert [point["alpha"] for point in curve.data["points"]] == [0.0, *algorithm.CURVE]
    for event in of_kind(whole[1], "round"):
        path = event.data["path"]
        assert path[: -event.round] == curve.data["points"]
        assert [point["round"] for point in path[-event.round :]] == list(range(1, event.round + 1))
        assert path[-1]["neutral_kl"] == event.data["neutral_kl"]
    for event in of_kind(whole[1], "answers")[1:]:
        assert event.data["steered"] == curve.data["answers"]
        assert event.data["steered_words"] == curve.data["words"]
        assert all(text.endswith(" … (cut)") for text in event.data["texts"])


def test_every_printed_answer_has_a_word_and_a_round_says_what_it_cost(whole):
    for event in of_kind(whole[1], "answers"):
        assert len(event.data["words"]) == len(event.data["texts"])
        assert set(event.data["words"]) <= {"fine", "damaged", "broken"}
    for event in of_kind(whole[1], "round"):
        assert event.data["neutral_kl"] > 0
        assert event.data["facts_kept"] is None, "random weights tell no facts"
        assert event.data["headline"]["word"]


def test_a_profile_event_holds_everything(whole):
    for event in of_kind(whole[1], "profile"):
        assert sum(event.data["p"].values()) == pytest.approx(1.0)
        assert len(event.data["per_vignette"]) == event.data["n_vignettes"] == 3
        assert {"perplexity", "perplexity_ratio", "repetition", "looping"} <= set(event.data["text"])
        assert {"relevance", "damaged", "broken", "diversity"} <= set(event.data["text"])
        assert event.data["text_verdict"] in ("fine", "damaged", "broken")
        assert "answers_verdict" in event.data


def test_completions_come_at_every_alpha_with_scores(whole):
    made = [event.data for event in of_kind(whole[1], "completion") if event.round == 1]
    assert [row["alpha"] for row in made] == [1.0, 1.5, 2.0, 2.5] * 2
    assert [row["index"] for row in made] == list(range(8))
    assert len({row["prompt"] for row in made}) == 2
    assert all({"perplexity_ratio", "repetition", "variety"} <= set(row["scores"]) for row in made)


@pytest.mark.parametrize(("train", "wanted"), [({}, {True, False}), ({"divergence": "nll"}, {True})])
def test_what_the_filter_drops_is_imitated_and_no_more(tmp_path, monkeypatch, train, wanted):
    seen, lm = [], model()
    monkeypatch.setattr(algorithm, "train_round", lambda _lm, _stack, rows, *_, **__: seen.extend(rows) or ())
    every_other = [FilterVerdict(kept=number % 2 == 0, scores={}, reasons=()) for number in range(8)]
    monkeypatch.setattr(algorithm.Measures, "judge", lambda *_: every_other)
    play(tmp_path, fast(rounds=1, train={**fast().train.model_dump(), **train}), lm=lm)
    assert {row.likely for row in seen} == wanted
    assert sum(row.likely for row in seen) == 4


def test_base_answers_plain_prompts_too_and_of_every_answer_its_beginning_is_learned(tmp_path, monkeypatch):
    seen, lm = [], model()
    for place in (algorithm, measure):
        monkeypatch.setattr(place, "LEARNED", 3)
    monkeypatch.setattr(algorithm, "train_round", lambda _lm, _stack, rows, *_, **__: seen.extend(rows) or ())
    data = {**fast().data.model_dump(), "n_plain": 3}
    written = [event.data for event in of_kind(play(tmp_path, fast(data=data), lm=lm), "completion")]
    of_base, steered = [*written[8:11], *written[19:]], [*written[:8], *written[11:19]]
    assert {row["alpha"] for row in of_base} == {0.0}
    assert all(row["kept"] and not row["scores"] for row in of_base)
    assert {row["prompt"] for row in of_base} <= set(lm.material.plain_prompts())
    assert not {row["prompt"] for row in steered} & set(lm.material.plain_prompts())
    assert len(seen) == len(written) == 22
    for row in seen:
        assert 0 < len(row.completion_ids) <= 3
    learned = [lm.tokenizer.decode(row.completion_ids) for row in seen if not row.steered]
    assert sorted(learned) == sorted(row["text"] for row in of_base), (
        "of a plain prompt no more is written than is learned"
    )


def test_a_run_stopped_in_any_stage_and_resumed_gives_the_same_numbers(whole, tmp_path):
    _, events = whole
    for number, stage in enumerate(("base", "calibrate", "train")):
        folder = tmp_path / stage
        folder.mkdir()
        begun = []
        lm = model()
        with EventLog(folder / "events.jsonl") as log:
            for event in heal.run(lm, fast(), folder, stop=lambda: stage in begun):  # noqa: B023
                log.append(*event)
                if event[0] == "stage" and (number == 0 or event[1] == 2):
                    begun.append(event[2]["stage"])
        earlier = read(folder / "events.jsonl").events
        assert earlier[-1].kind == "cancelled"
        assert not [name for name, _ in lm.model.named_modules() if "lora" in name]
        done = len(of_kind(earlier, "round"))
        assert done == (0 if stage == "base" else 1)
        torch.manual_seed(1234)
        rest = play(folder, start_round=done, earlier=earlier)
        wanted = [event for event in events if (event.round is None or event.round > done or stage == "base")]
        assert numbers(rest) == numbers(wanted)
        for name in ("adapters/round-2/adapter_model.safetensors", "vectors/round-2.safetensors"):
            ours, theirs = load_file(folder / name), load_file(whole[0] / name)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        of_adapter = "adapters/round-2/adapter_config.json"
        ours, theirs = (json.loads((one / of_adapter).read_text()) for one in (folder, whole[0]))
        assert ours == theirs


def test_what_round_one_measured_of_base_is_measured_once_also_when_it_was_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(Controls, "as_far", lambda *_asked: 0)
    settings = fast(rounds=1, evaluate={**fast().evaluate.model_dump(), "controls": 2})
    (tmp_path / "whole").mkdir()
    events = play(tmp_path / "whole", settings)
    ends = next(number for number, event in enumerate(events) if event.kind == "curve") + 1
    monkeypatch.setattr(Measures, "controls", None)
    monkeypatch.setattr(algorithm, "CURVE", None)
    for attempt, earlier in enumerate(([], [Event(0, 0.0, "resumed", None, {"round": 0})])):
        (folder := tmp_path / str(attempt)).mkdir()
        again = play(folder, settings, earlier=[*earlier, *events[:ends]])
        assert numbers(again) == numbers([event for event in events if event.round != 0])


CLOZE = {"frame": "cloze", "n_vignettes": 3, "n_answers": 3, "controls": 0}


def test_a_cloze_is_calibrated_once_on_base_also_when_resumed(tmp_path, monkeypatch):
    """The set is too small to calibrate itself: our own vignettes do, and are read for it once."""
    monkeypatch.setattr("steer_heal.evaluate.frames.LEAST", 4)
    settings = fast(evaluate=CLOZE)
    folders = [tmp_path / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir()
    whole = play(folders[0], settings)
    play(folders[1], settings.model_copy(update={"rounds": 1}))
    earlier = read(folders[1] / "events.jsonl").events
    monkeypatch.setattr("steer_heal.evaluate.frames.evaluate", None)
    rest = play(folders[1], settings, start_round=1, earlier=earlier)
    again = [event for event in earlier if event.kind != "finished"] + list(rest)
    assert numbers(again) == numbers(whole)
    profiles = [event.data for event in of_kind(again, "profile")]
    assert len(profiles) == 4
    assert {one["frame"] for one in profiles} == {"cloze"}
    assert {one["coherence"] for one in profiles} == {None}
    (given,) = {json.dumps(plain(one["calibration"])) for one in profiles}
    assert [len(row) for row in json.loads(given)] == [7, 7]
    assert of_kind(whole, "round")[-1].data["headline"]["word"]


def test_the_frame_of_a_run_is_chosen_on_base_kept_in_its_log_and_beside_it(tmp_path, monkeypatch):
    worth = {"choice": (0.2, 0.1), "cloze": (0.5, 0.4)}
    measured = []

    def measure(lm, vignettes, frame, **more):
        measured.append(frame.name)
        value, low = worth[frame.name]
        agreement = Agreement(value, low, 1.0, 1 / 7)
        (found,) = evaluate(lm, vignettes[:2], frame)
        return [replace(found, agreement=agreement)]

    monkeypatch.setattr("steer_heal.evaluate.frames.evaluate", measure)
    settings = fast(rounds=1, evaluate={**CLOZE, "frame": "auto"})
    first = play(tmp_path, settings, cache_dir=tmp_path / "cache")
    assert {event.data["frame"] for event in of_kind(first, "profile")} == {"cloze"}
    assert measured == ["choice", "cloze"]
    assert not of_kind(first, "profile")[0].data["cannot_answer"]
    (tmp_path / "again").mkdir()
    assert numbers(play(tmp_path / "again", settings, cache_dir=tmp_path / "cache")) == numbers(first)
    assert measured == ["choice", "cloze"]

    worth["cloze"] = (0.15, 0.1)
    (tmp_path / "silent").mkdir()
    silent = play(tmp_path / "silent", settings)
    said = of_kind(silent, "round")[0].data
    assert of_kind(silent, "profile")[0].data["cannot_answer"]
    assert said["retention"] is None
    assert said["headline"]["word"] in ("cannot answer", "collapsed")


def test_a_vector_no_better_than_random_ends_the_run_before_an_answer_is_written(tmp_path):
    events = play(tmp_path, fast(rounds=1, evaluate={**fast().evaluate.model_dump(), "controls": 2}))
    assert events[-1].kind == "failed"
    assert "no better than random" in events[-1].data["message"]
    assert len(of_kind(events, "controls")) == 1
    assert not of_kind(events, "completion")


@pytest.mark.parametrize(("as_far", "over", "n_whole"), [(2, 7, 0), (1, 9, 1)])
def test_a_few_vignettes_end_the_run_where_they_are_plain(tmp_path, monkeypatch, as_far, over, n_whole):
    monkeypatch.setattr("steer_heal.heal.measure.FEW", 7)
    monkeypatch.setattr(Controls, "as_far", lambda *_asked: as_far)
    few = {**fast().evaluate.model_dump(), "controls": 2, "n_vignettes": 9}
    events = play(tmp_path, fast(rounds=1, evaluate=few))
    assert (
        f"{as_far} of 2 random directions of the same KL move it as far, over {over} vignettes"
        in (events[-1].data["message"])
    )
    assert len(of_kind(events, "controls")) == n_whole
    assert not of_kind(events, "curve")


def test_controls_are_measured_once_said_beside_every_round_and_kept_when_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(Controls, "as_far", lambda *_asked: 0)
    settings = fast(rounds=2, evaluate={**fast().evaluate.model_dump(), "controls": 2})
    events = play(tmp_path / "whole", settings)
    (held,) = [event for event in events if event.kind == "controls"]
    assert len(held.data["random"]) == 2 == len(held.data["c_stars"])
    rounds = [event.data["as_far"] for event in events if event.kind == "round"]
    assert rounds == [0, 0]
    first = [event for event in events if (event.round or 0) <= 1 and event.kind not in ("finished", "stage")]
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed", ignore=shutil.ignore_patterns("events.jsonl"))
    again = play(tmp_path / "resumed", settings, start_round=1, earlier=first)
    assert not [event for event in again if event.kind == "controls"]
    assert [event.data["as_far"] for event in again if event.kind == "round"] == rounds[1:]


def test_another_seed_gives_another_run_after_which_the_base_is_bit_identical(whole, tmp_path):
    lm = model()
    before, modules = tiny.logits(lm), dict(lm.model.named_modules())
    other = play(tmp_path, fast(rounds=1, seed=1), lm=lm)
    assert torch.equal(tiny.logits(lm), before)
    assert dict(lm.model.named_modules()) == modules
    assert not [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    mine = [event.data["text"] for event in of_kind(whole[1], "completion") if event.round == 1]
    assert [event.data["text"] for event in of_kind(other, "completion")] != mine
    base = [of_kind(events, "profile")[0].data["p"] for events in (other, whole[1])]
    assert base[0] == base[1]


def test_bad_settings_are_told_before_anything_is_written(tmp_path):
    for wrong in (
        {"trait": "greed"},
        {"band": (0.49, 0.5)},
        {"evaluate": {"frame": "none"}},
        {"evaluate": {"vignettes": "none"}},
    ):
        with pytest.raises(SettingsError):
            next(heal.run(model(), fast(**wrong), tmp_path))
    assert not list(tmp_path.iterdir())
    events = list(heal.run(model(), fast(), tmp_path, start_round=1))
    assert events[-1][0] == "failed"
    assert "is no adapter" in events[-1][2]["message"]


def test_seeds_differ_by_run_round_and_stage():
    seeds = {heal.seed_of(s, r, stage) for s in range(5) for r in range(5) for stage in heal.STAGES}
    assert len(seeds) == 5 * 5 * len(heal.STAGES)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_live_yields_ticks_returns_the_result_raises_the_work_s_error_and_stops_when_told():
    def work(tick):
        tick(1, 2)
        tick(2, 2)
        return "done"

    def collect():
        yield (yield from live(work, lambda: False))

    assert list(collect()) == [(1, 2), (2, 2), "done"]

    def fails(tick):
        raise KeyError("inside")

    with pytest.raises(KeyError):
        list(live(fails, lambda: False))

    def endless(tick):
        while True:
            tick(0, 1)

    with pytest.raises(Stopped):
        list(live(endless, lambda: True))
    items = live(endless, lambda: False)
    next(items)
    items.close()


def test_a_trait_is_healed_on_its_own_axis(tmp_path):
    tiny.own_trait()
    few = {"n_vignettes": 3, "n_answers": 2, "controls": 0}
    settings = fast(rounds=1, trait="formal", evaluate=few)
    events = play(tmp_path, settings)
    profiles = {event.data["stage"]: event.data for event in of_kind(events, "profile")}
    assert list(profiles) == ["base", "steered", "healed"]
    assert {tuple(found["p"]) for found in profiles.values()} == {("formal", "casual")}
    assert {found["agreement"]["value"] for found in profiles.values()} == {None}
    (done,) = of_kind(events, "round")
    moved = [found["p"]["formal"] - profiles["base"]["p"]["formal"] for found in profiles.values()]
    assert done.data["retention"] == pytest.approx(moved[2] / moved[1])
    assert done.data["shift_cosine"] is None
    assert set(done.data["intervals"]["healed"]) == {"formal", "casual"}
    card = (tmp_path / done.data["adapter"] / "README.md").read_text()
    assert "| **formal** | " in card
    resumed = play(tmp_path, settings, start_round=1, earlier=events)
    assert [event.kind for event in resumed] == ["finished"]
    own_traits.delete("formal")
    tiny.own_trait("formal", "stiff", "loose")
    changed = play(tmp_path, settings, start_round=1, earlier=events)
    assert "other poles than when this run began" in changed[-1].data["message"]


def test_a_gated_run_steers_and_imitates_the_answers_tokens_alone(whole, tmp_path, monkeypatch):
    shown = []

    def watched(blocks, directions_LD, doses_BL, shares_BT=None):
        shown.append(shares_BT)
        return steer(blocks, directions_LD, doses_BL, shares_BT)

    monkeypatch.setattr(algorithm, "steer", watched)
    made = {**fast().data.model_dump(), "where": "answer"}
    events = play(tmp_path, fast(rounds=1, data=made))
    assert events[-1].kind == "finished"
    assert shown
    assert all(shares_BT[:, -1].eq(1.0).all() and shares_BT[:, 0].eq(0.0).all() for shares_BT in shown)
    gated, usual = (
        [event.data["text"] for event in some if event.kind == "completion" and event.round == 1]
        for some in (events, whole[1])
    )
    assert len(gated) == len(usual)
    assert gated != usual


def test_a_run_of_a_mix_trains_on_what_the_mix_adds_and_resumes_with_the_same_numbers(tmp_path, monkeypatch):
    tiny.own_trait()
    settings = fast(mix="care_over_authority - 0.5 liberty_over_custom + 0.2 formal @answer")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    events = play(whole, settings)
    assert events[-1].kind == "finished"
    first, second = of_kind(events, "vector")
    parts = first.data["parts"]
    assert set(parts) == {"care_over_authority", "liberty_over_custom", "formal"}
    assert second.data["parts"] == parts, "how much of each there is stays as it was on base"
    made, lm = vector.load(whole / "vectors" / "round-1.safetensors"), model()
    wanted_LD = sum(
        weight * parts[name]["c_star"] * extracted(lm, name, settings).directions_LD
        for name, weight in (("care_over_authority", 1.0), ("liberty_over_custom", -0.5), ("formal", 0.2))
    )
    layers = list(band_layers(lm.n_layers, settings.band))
    wanted_LD = wanted_LD / wanted_LD[layers].norm(dim=-1).mean()
    assert torch.allclose(made.directions_LD[layers], wanted_LD[layers], atol=1e-5)
    assert made.meta["mix"] == settings.mix
    card = (whole / "adapters" / "round-1" / "README.md").read_text()
    assert "0.5 liberty_over_custom + 0.2 formal @answer" in card
    assert "| casual, of `formal` | " in card
    base, steered, healed = (event.data for event in of_kind(events, "profile")[:3])
    (said, _) = of_kind(events, "round")
    beside = said.data["beside"]
    assert list(beside) == ["liberty_over_custom", "formal"]
    p = [one["others"]["formal"]["p"]["formal"] for one in (base, steered, healed)]
    assert beside["formal"]["steered"] == pytest.approx(2 * (p[1] - p[0]))
    assert beside["formal"]["healed"] == pytest.approx(2 * (p[2] - p[0])) != 0.0
    target = data.trait("liberty_over_custom").target
    assert beside["liberty_over_custom"]["healed"] == trait_shift(healed["p"], base["p"], target)
    assert f"formal moved by {beside['formal']['healed']:+.3f}" in said.data["headline"]["why"]
    shutil.copytree(whole, resumed, ignore=shutil.ignore_patterns("events.jsonl"))
    earlier = [event for event in read(whole / "events.jsonl").events if (event.round or 0) <= 1]
    anew: list[str] = []  # what would be calibrated on a base with adapters off, whose last bit may differ
    monkeypatch.setattr(measure.Frames, "of", lambda _frames, name, **_: anew.append(name))
    again = play(resumed, settings, start_round=1, earlier=earlier)
    assert not anew
    assert numbers(again) == numbers(event for event in events if event.round in (2, None))


def test_a_run_says_that_two_vectors_of_its_mix_are_parallel(tmp_path):
    ours = data.trait("care_over_authority")
    tiny.own_trait("kind", ours.positive, ours.negative)
    settings = fast(mix="care_over_authority + kind", evaluate={"frame": "choice", "n_vignettes": 3})
    found = heal.run(model(), settings, tmp_path)
    said = next(facts["message"] for kind, _, facts in found if kind == "vector")
    assert "care_over_authority and kind are parallel" in said


def extracted(lm, name, settings):
    return vector.extract(lm, data.trait(name), lm.material.contexts(name), settings.extract)


def adapters(folder):
    found = (folder / "adapters").rglob("*")
    return {path.relative_to(folder): path.read_bytes() for path in found if path.is_file()}


def empty(row):
    return Completion("", (), True, alpha=row.alpha, prompt=row.prompt)


def same(row):
    return Completion("the same", (Token(40, "the", 0.5), Token(41, "same", 0.5)), True, prompt=row.prompt)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (empty, "Round 3 starved.*kept 0 of 8.*perplexity 8"),
        (same, "Round 3 has nothing to learn from: all 8 kept answers are the same"),
    ],
)
def test_completions_that_teach_nothing_end_the_run_and_earlier_rounds_stay(
    whole, tmp_path, monkeypatch, changed, message
):
    folder, earlier = whole
    shutil.copytree(folder, tmp_path / "run")
    write = algorithm.Measures.write

    def rewrite(self, *args, **more):
        return [changed(row) for row in write(self, *args, **more)]

    monkeypatch.setattr(algorithm.Measures, "write", rewrite)
    events = play(tmp_path / "run", fast(rounds=3), start_round=2, earlier=earlier)
    assert events[-1].kind == "failed"
    assert re.search(message, events[-1].data["message"])
    assert adapters(tmp_path / "run") == adapters(folder)


def test_a_completion_longer_than_the_model_reads_is_refused_with_the_numbers(tmp_path):
    with pytest.raises(
        SettingsError, match=r"reads 512 tokens at most.*max_new_tokens to \d+ or fewer, not 511"
    ):
        next(heal.run(model(), fast(data={**fast().data.model_dump(), "max_new_tokens": 511}), tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_model_ends_the_run_and_stays(tmp_path):
    stack = AdapterStack(tiny.language_model("gemma3", n_layers=2))
    stack.fresh(1, TrainSettings(rank=2), seed=0)
    stack.fold()
    stack.save(1, tmp_path / "adapters")
    before, lm = adapters(tmp_path), model()
    events = list(heal.run(lm, fast(), tmp_path, start_round=1))
    assert [kind for kind, _, _ in events] == ["failed"]
    assert "cannot be put on" in events[0][2]["message"]
    assert adapters(tmp_path) == before
    assert not [name for name, _ in lm.model.named_modules() if "lora" in name]
