"""The cloze: its file, what it refuses, its calibration, and how a model's frame is remembered."""

import json
import math
from dataclasses import replace

import pytest
import torch

from steer_heal import data
from steer_heal.config import FOUNDATIONS, SettingsError
from steer_heal.data import Cloze, Frame
from steer_heal.evaluate import frames
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.cloze import LEAST
from steer_heal.evaluate.frames import Frames
from steer_heal.records import Agreement, Profile, Stopped, Vignette
from steer_heal.vectors.steering import coefficients
from tests import tiny

STATEMENTS = (" hurts.", " cheats.", " leaves.", " defies.", " stinks.", " binds.", " is odd, no more.")
WORDINGS = (
    Frame("c", "{text} What of it?", STATEMENTS, "It", ("forward",)),
    Frame("c", "{text} Say more.", STATEMENTS[::-1], "This", ("forward",)),
)
CLOZE = Cloze("c", WORDINGS)
VIGNETTES = [
    Vignette(f"v{i}", FOUNDATIONS[i % 7], f"You see {'a man ' * (i % 5)}and {i}.", "other_violate")
    for i in range(14)
]


@pytest.fixture
def lm():
    return tiny.shared("llama")


def doses(lm, *amounts):
    rows_RL = torch.cat([coefficients(lm.n_layers, (1, 2), c) for c in amounts])
    return {"vector": tiny.vector(lm, seed=1), "coefficients_RL": rows_RL}


def scores(profile):
    return [list(row.score.values()) for row in profile.per_vignette]


def test_the_base_s_calibration_is_used_for_other_vignettes_and_asked_for_with_doses(lm):
    base = evaluate(lm, VIGNETTES, CLOZE)[0]
    assert (base.coherence, base.agreement.value is None, base.n_invalid) == (None, False, 0)
    assert {row.mass for row in base.per_vignette} == {1.0}
    alone = evaluate(lm, VIGNETTES[:1], CLOZE, calibrated=base.calibration)[0]
    assert scores(alone) == [pytest.approx(scores(base)[0], abs=1e-4)]
    assert "fewer than 14" in alone.agreement.why
    with pytest.raises(SettingsError, match="need a calibration: measure the base first"):
        evaluate(lm, VIGNETTES, CLOZE, **doses(lm, 0.6))
    with pytest.raises(SettingsError, match="not one of the frame 'c'"):
        evaluate(lm, VIGNETTES, CLOZE, calibrated=base.calibration[:1])


def test_what_breaks_is_counted_not_averaged():
    lm = tiny.language_model("llama", n_layers=4)
    with torch.no_grad():
        next(lm.blocks[2].parameters()).fill_(math.nan)
    found = evaluate(lm, VIGNETTES, CLOZE)[0]
    assert (found.n_invalid, found.coherence, found.agreement.value) == (14, None, 0.0)
    assert all(math.isfinite(p) for p in found.p.values())
    assert found.calibration == ((0.0,) * 7,) * 2


def test_progress_goes_through_all_wordings_and_it_can_be_stopped(lm):
    ticks = []
    evaluate(lm, VIGNETTES, CLOZE, batch_size=7, progress=lambda *tick: ticks.append(tick))
    assert ticks == sorted(ticks)
    assert {(14, 28), (28, 28)} <= set(ticks)
    with pytest.raises(Stopped):
        evaluate(lm, VIGNETTES, CLOZE, stop=lambda: True)


def test_a_statement_that_encodes_to_nothing_is_refused_by_name(lm, monkeypatch):
    real = type(lm).encode_chat
    monkeypatch.setattr(
        type(lm), "encode_chat", lambda self, told, text="": real(self, told, text.replace(" binds.", ""))
    )
    monkeypatch.setattr("steer_heal.evaluate.questions.plain_ids", lambda lm, text: [])
    with pytest.raises(SettingsError, match=r"The frame 'c': ' binds\.' encodes to nothing for tiny-llama"):
        evaluate(lm, VIGNETTES, CLOZE)


WORDING = {
    "question": "{text} What of it?",
    "prefill": "It",
    "statements": dict(zip(FOUNDATIONS, STATEMENTS, strict=True)),
}


def test_a_cloze_is_read_with_its_statements_in_our_order(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    turned = dict(reversed(WORDING["statements"].items()))
    rows = {"c": {"kind": "cloze", "wordings": [{**WORDING, "statements": turned}]}}
    (tmp_path / "frames.json").write_text(json.dumps(rows))
    assert data.frame("c") == Cloze("c", WORDINGS[:1])
    assert data.frames() == ("c",)


@pytest.fixture
def asked(monkeypatch):
    """Which frames are measured, and what they are made to be worth."""
    measured = []
    worth = {"choice": 0.2, "cloze": 0.6}

    def measure(_lm, vignettes, frame, **_more):
        measured.append(frame.name)
        value = worth[frame.name]
        made = Agreement(value, value - 0.05, value + 0.05, 1 / 7)
        return [Profile({}, None, len(vignettes), (), 0, frame.name, made, 0.1, ((0.5,) * 7,))]

    monkeypatch.setattr(frames, "evaluate", measure)
    return measured


def test_the_frame_is_chosen_once_and_remembered_on_disk(lm, asked, tmp_path):
    frames = Frames(lm, tmp_path)
    assert not frames.ready()
    first = frames.of()
    assert (first.frame, first.n_vignettes, asked) == ("cloze", LEAST, ["choice", "cloze"])
    assert frames.ready()
    assert frames.of("choice").frame == "choice"
    assert Frames(lm, tmp_path).of() == first
    assert asked == ["choice", "cloze"], "nothing is measured again"
    Frames(tiny.shared("qwen3"), tmp_path).of()
    assert len(asked) == 4, "another model is another matter"


def test_another_wording_is_measured_again(lm, asked, tmp_path, monkeypatch):
    Frames(lm, tmp_path).of("cloze")
    known = data.frame("cloze")
    changed = replace(known, wordings=known.wordings[:1])
    monkeypatch.setattr(data, "frame", lambda _name: changed)
    Frames(lm, tmp_path).of("cloze")
    assert asked == ["cloze", "cloze"]


def test_a_set_that_cannot_calibrate_itself_takes_ours(lm, asked):
    frames = Frames(lm)
    balanced = lm.material.vignettes(condition="other_violate", limit=LEAST)
    assert frames.calibration("choice", balanced[:2]) == ()
    assert frames.calibration("cloze", balanced) == ()
    assert asked == []
    alike = [replace(row, foundation="Care") for row in balanced]
    for few in (balanced[:3], alike, [replace(row, foundation="") for row in balanced]):
        assert frames.calibration("cloze", few) == ((0.5,) * 7,)
    assert asked == ["cloze"]
