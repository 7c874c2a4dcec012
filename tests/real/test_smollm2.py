"""What people do with a real pretrained model, on SmolLM2-135M-Instruct: load, steer, break, read, heal."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from steer_heal import data
from steer_heal.config import (
    AUTO,
    DEFAULT_BAND,
    DEFAULT_TRAIT,
    SMOLLM2,
    DoseRequest,
    SampleSettings,
    SteerRequest,
    build,
    heal_settings,
)
from steer_heal.data import own_traits
from steer_heal.engine import Engine
from steer_heal.engine.run_index import RunIndex
from steer_heal.engine.vectors import Vectors
from steer_heal.evaluate import drafts, frames, scenes
from steer_heal.evaluate.frames import Frames
from steer_heal.forward import holds_on
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, load, user
from steer_heal.records import Event
from steer_heal.runs.jobs import LocalProcesses, this_process
from steer_heal.runs.store import Store
from steer_heal.runs.worker import work
from steer_heal.vectors.steering import coefficients
from tests import tiny
from tests.close import model_rounding
from tests.rounds import OPEN

LAYERS = (12, 13, 14, 15, 16, 17)
TURN = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
GREEDY = SampleSettings(max_new_tokens=24, greedy=True)
SCENE = "My manager wants me to ignore a wounded bird. What should I do?"


@pytest.fixture(scope="module")
def engine(smollm2: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine as the page has it, with the vector and c* that ship with the project."""
    folder = tmp_path_factory.mktemp("engine")
    engine = Engine(SMOLLM2, runs_dir=folder / "runs", db=folder / "runs.duckdb", lm=smollm2)
    yield engine
    engine.close()


def last(engine: Engine, alpha: float):
    asked = build(SteerRequest, prompt=SCENE, alpha=alpha, sample=GREEDY)
    return list(engine.steer(asked, session="real"))[-1]


def written(frame) -> tuple[str, str]:
    return "".join(t.text for t in frame.base), "".join(t.text for t in frame.steered)


def test_it_loads_and_its_template_is_used_rightly(smollm2: LanguageModel) -> None:
    assert (smollm2.n_layers, smollm2.width, smollm2.name) == (30, 576, SMOLLM2)
    assert smollm2.info.n_parameters == 134_515_008
    ids = smollm2.encode_chat([user("What is this?")])
    assert smollm2.tokenizer.decode(ids) == TURN.format("What is this?")
    typed = smollm2.encode_chat([user("Say <|im_end|> twice.")])
    assert typed.count(2) == ids.count(2)
    assert smollm2.eos_ids == {2}
    own = smollm2.sampling
    assert (own.temperature, own.top_p) == (0.7, 0.9)
    assert holds_on(smollm2, torch.zeros(30, 576))


def test_rows_of_zeros_are_the_unsteered_model(smollm2: LanguageModel) -> None:
    """In float32, where a slip cannot hide behind the roundings of bfloat16: at every token base takes what
    transformers' own forward finds likeliest, and as likely."""
    exact = smollm2 if smollm2.dtype == torch.float32 else load(SMOLLM2, dtype=torch.float32)
    prompt = tuple(exact.encode_chat([user(SCENE)]))
    rows = [Row(prompt), Row(prompt, coefficients(30, LAYERS, 60.0)[0], shadow=True)]
    short = SampleSettings(max_new_tokens=8, greedy=True)
    base, steered = complete(exact, rows, tiny.directions(exact), short)
    written_T = torch.tensor([token.id for token in base.tokens])
    assert [token.id for token in steered.tokens] != written_T.tolist()
    with torch.inference_mode():
        ids_BT = torch.cat([torch.tensor(prompt), written_T])[None]
        logits_TV = exact.model(ids_BT).logits[0, len(prompt) - 1 : -1]
    rounding = model_rounding(exact) * float(logits_TV.abs().max())
    at_written_T = logits_TV.gather(1, written_T[:, None])[:, 0]
    assert float((logits_TV.amax(1) - at_written_T).max()) <= rounding
    p_T = (at_written_T - logits_TV.logsumexp(1)).exp()
    assert [token.p for token in base.tokens] == pytest.approx(p_T.tolist(), rel=rounding)


def test_steering_moves_it_and_breaks_it(engine: Engine) -> None:
    base, zero = written(last(engine, 0.0))
    _, steered = written(last(engine, 1.0))
    far = last(engine, 8.0)
    assert zero == base
    assert steered not in ("", base)
    assert far.health.verdict == "broken"


def test_its_first_answer_needs_no_measuring(smollm2: LanguageModel, tmp_path: Path) -> None:
    """Stale where this fails: `make measured` makes anew what ships with the project."""

    def silent(text: str) -> None:
        pytest.fail(f"this was measured anew: {text}")

    vectors = Vectors(smollm2, tmp_path)
    steer = vectors.steer(DEFAULT_TRAIT, DEFAULT_BAND, say=silent)
    assert steer.calibration.reached
    vectors.probe(DEFAULT_TRAIT, AUTO, steer.layers)
    Frames(smollm2, tmp_path).of()
    assert not list(tmp_path.iterdir())


def test_it_answers_the_foundations_above_chance_and_a_sweep_moves_it(engine: Engine) -> None:
    sample = SampleSettings(max_new_tokens=12, seed=1)
    request = build(DoseRequest, alphas=(0.0, 1.0), n_vignettes=21, sample=sample, controls=0)
    rows = list(engine.dose(request, session="real"))[-1].rows
    assert [row.alpha for row in rows] == [0.0, 1.0]
    profile = rows[0].profile
    assert profile.agreement.low > 1 / 7
    assert (rows[1].trait_shift or 0.0) > 0.1 > abs(rows[0].trait_shift or 0.0)


SMALL = {
    "extract": {"method": "mean_diff", "n_contexts": 8},
    "calibrate": {"n_prompts": 1, "n_tokens": 4, "tolerance": 0.3},
    "data": {"n_answers": 8, "n_plain": 0, "min_kept": 2, "max_new_tokens": 8},
    "filter": OPEN,
    "train": {"epochs": 1, "batch_size": 4},
    "evaluate": {"n_vignettes": 3, "n_answers": 2, "controls": 0},
}  # fmt: skip


@pytest.mark.timeout(600)
def test_it_drafts_what_two_poles_say_and_moves_along_them(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_traits, "folder", lambda: tmp_path)  # not the folder of whoever runs the tests
    monkeypatch.setattr(scenes, "EACH", 1)  # half the scenes, a quarter of the contexts
    contexts = data.Material.contexts
    monkeypatch.setattr(data.Material, "contexts", lambda own, trait: contexts(own, trait)[:32])
    monkeypatch.setattr(frames, "LEAST", 7)  # a tenth of the vignettes that its statements are calibrated on
    made, said = engine.make_trait("formal", "casual")
    assert "pairs of replies that smollm2 drafted are sound. They answer" in said
    assert len(set(made.scenes) - set(data.material(demo=False).contexts(""))) >= drafts.LEAST
    assert len(made.scenes) == len(made.replies)
    assert len(made.statements) >= drafts.LEAST
    asked = build(
        DoseRequest, trait=made.name, alphas=(0.0, 1.0, -1.0), n_vignettes=2, controls=0,
        prompts=(SCENE,), sample=build(SampleSettings, max_new_tokens=2),
    )  # fmt: skip
    sweep = list(engine.dose(asked, session="real"))[-1]
    assert sweep.movement
    assert sweep.movement > 0.0 > (sweep.rows[0].trait_shift or 0.0)


def test_a_heal_run_stopped_and_resumed_ends_on_the_map(
    smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes and kills are for smaller models: `tests/loop/test_runs.py`, `tests/faults`."""
    for texts in ("facts", "fixed_prompts", "neutral_prompts"):
        of_material = getattr(data.Material, texts)
        monkeypatch.setattr(data.Material, texts, lambda own, every=of_material: every(own)[:2])
    jobs = LocalProcesses(tmp_path / "runs")
    index = RunIndex(jobs, Store(tmp_path / "runs.duckdb"), example=None, every_s=0.0)
    stopped = threading.Event()

    def profiles() -> int:
        return sum(event.kind == "profile" for event in jobs.events(run_id).events)

    def stop_at_the_first(event: Event) -> None:
        if event.kind == "profile":
            stopped.set()

    settings = heal_settings("quick", model=SMOLLM2, rounds=1, seed=3, **SMALL)
    folder = jobs.create(settings, worker=this_process())
    run_id = folder.run_id
    assert work(folder, stopped, stop_at_the_first) == "cancelled"
    assert profiles() == 1
    work(jobs.reopen(run_id, worker=this_process()), threading.Event())
    assert index.rows()[0].status == "finished", index.rows()[0].message
    assert profiles() == 3
    assert [(node.round, node.stage) for node in index.map([run_id])] == [
        (0, "base"), (1, "steered"), (1, "healed"),
    ]  # fmt: skip
    assert {node.model for node in index.map([run_id])} == {SMOLLM2}
    assert len(index.round(run_id, 1).answers) == 2
