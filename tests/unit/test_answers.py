"""How people's files say that answers are drawn and where they end, and what is made of it."""

import json
import math
import shutil

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig

from steer_heal.config import SampleSettings, SettingsError, heal_settings
from steer_heal.generate import Row, complete
from steer_heal.generate.sampling import Sampler, exponential, sampler, stream
from steer_heal.heal import measure
from steer_heal.heal.adapters import AdapterStack
from steer_heal.models import SamplingDefaults, find, load
from steer_heal.models.sampling import known, read
from tests import tiny

SILENT = SamplingDefaults(0.6, 20, 0.8)
HOW = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny.save(tiny.language_model("llama"), tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(saved, tmp_path):
    """A model's folder of its own, whose generation config a test writes."""
    return shutil.copytree(saved, tmp_path / "brought")


def said_by(folder, text):
    (folder / "generation_config.json").write_text(text)
    return load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (HOW, (0.9, 40, 0.95)),
        ({name: str(value) for name, value in HOW.items()}, (0.9, 40, 0.95)),
        ({"top_p": None, "temperature": None}, (0.6, 20, 1.0)),
        *(({"top_k": none}, (0.6, 0, 0.8)) for none in (0, -1, None, "0", "-1")),
        *(({**HOW, "temperature": zero}, (0.0, 40, 0.95)) for zero in (0, "0.0")),
        *(({**HOW, "do_sample": no}, (0.0, 40, 0.95)) for no in (False, "false")),
        *(({"do_sample": yes}, (0.6, 20, 0.8)) for yes in (None, True)),
        ({}, (0.6, 20, 0.8)),
    ],
)
def test_what_is_said_holds_and_the_rest_is_as_in_the_table(said, meant):
    """transformers takes what is absent for false, but most published files leave do_sample out."""
    assert read(said, "a file", SILENT).sampling == SamplingDefaults(*meant)


@pytest.mark.parametrize(
    ("ends", "ids"),
    [(2, (2,)), ("2", (2,)), ([1, "106"], (1, 106)), (["7"], (7,)), (None, ()), (-1, ()), (2.0, (2,))],
)
def test_ends_are_a_token_or_a_list_of_some(ends, ids):
    assert read({"eos_token_id": ends}, "a file", SILENT).eos_ids == ids


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"temperature": True}, "temperature: must be a number"),
        ({"temperature": -0.5}, "temperature must be at least 0"),
        ({"top_p": 7}, "top_p must be at most 1, not 7"),
        ({"top_p": 0}, "top_p must be more than 0"),
        ({"top_k": 2.5}, "top_k must be a whole number, not 2.5"),
        ({"top_k": -7}, "top_k must be at least -1"),
        ({"do_sample": "sometimes"}, "do_sample must be true or false, not 'sometimes'"),
        ({"eos_token_id": [1, math.inf]}, "eos_token_id must be the number of a token"),
        ({"eos_token_id": [1, True]}, "eos_token_id must be the number of a token"),
    ],
)
def test_nonsense_is_refused_with_where_it_stands_and_what_to_write(said, problem):
    with pytest.raises(SettingsError, match=f"^the file cannot be used: {problem}"):
        read(said, "the file", SILENT)


def test_models_are_known_by_name_or_architecture_and_others_are_07_09_none():
    plain = LlamaConfig()
    assert known("smollm2", plain) == known("/models/SmolLM2-135M-Instruct", plain) == SamplingDefaults()
    assert known("google/gemma-3-1b-it", plain) == SamplingDefaults(1.0, 64, 0.95)
    assert tiny.language_model("gemma3").sampling.temperature == 1.0
    assert known("/gemma-3/mine", plain) == SamplingDefaults(0.7, 0, 0.9)


def test_a_model_without_any_setting_is_07_09_none(folder):
    assert said_by(folder, '{"_from_model_config": true}').sampling == SamplingDefaults(0.7, 0, 0.9)


def test_a_model_that_does_not_sample_answers_greedily_until_it_is_asked_otherwise(folder):
    lm = said_by(folder, '{"temperature": 0, "do_sample": false}')
    rows, nothing = [Row((2, 9, 30), rng_stream=noise) for noise in range(3)], torch.zeros(4, 32)

    def texts(**asked):
        return {one.text for one in complete(lm, rows, nothing, SampleSettings(max_new_tokens=9, **asked))}

    assert texts() == texts(greedy=True)
    assert len(texts()) == 1
    assert len(texts(temperature=1.0)) > 1
    assert texts(temperature=0) == texts()


def test_a_file_of_strings_loads_and_ends_where_it_says(folder):
    """transformers compares a pad token that is a string with a number, and fails."""
    told = {
        "temperature": "0.6",
        "top_k": "-1",
        "top_p": "0.9",
        "pad_token_id": "0",
        "eos_token_id": ["7", "9"],
    }
    lm = said_by(folder, json.dumps(told))
    assert lm.sampling == SamplingDefaults(0.6, 0, 0.9)
    assert {7, 9} <= lm.eos_ids
    lm.model.save_pretrained(folder / "again")
    assert find(str(folder / "again")).kind == "folder"


def test_a_byte_order_mark_is_no_reason_to_forget_the_file(folder):
    assert said_by(folder, '\ufeff{"temperature": 0.3}').sampling.temperature == 0.3


@pytest.mark.parametrize(
    "text", ['{"temperature": "hot"}', '{"top_p": 7}', '{"temperature": NaN}', "[]", "{"]
)
def test_a_file_that_cannot_be_used_is_refused_at_load_by_its_name(folder, text):
    with pytest.raises(SettingsError, match=r"generation_config\.json"):
        said_by(folder, text)


def test_settings_that_stand_in_an_old_config_count_where_there_is_no_other_file(folder):
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "temperature": 0.4, "top_k": 0}))
    assert load(str(folder), device="cpu").sampling == SamplingDefaults(0.4, 0, 0.9)


def test_ends_of_a_config_in_memory_are_read_the_same_way():
    lm = tiny.language_model("llama")
    lm.model.generation_config = GenerationConfig(eos_token_id=["7"], temperature="0.2")
    assert 7 in lm.eos_ids
    assert lm.sampling.temperature == 0.2


def test_a_heal_run_draws_all_its_text_as_its_settings_say(monkeypatch):
    asked = []
    monkeypatch.setattr(measure, "complete", lambda *given, **_: asked.append(given[3]) or [])
    lm = tiny.shared("llama")
    for told in ({}, {"temperature": 0.3, "top_p": "0.5", "top_k": -1}):
        settings = heal_settings(model="demo", data=told, evaluate={"n_vignettes": 7})
        measure.Measures(lm, AdapterStack(lm), settings, None, lambda: False).write(["p"], None, seed=4)
    own, other = asked
    assert (own.temperature, own.top_p, own.top_k) == (None, None, None)
    assert (other.temperature, other.top_p, other.top_k, other.seed) == (0.3, 0.5, 0, 4)


LOGITS = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0, -40.0])


def frequencies(how: Sampler, logits_V: torch.Tensor, n: int = 6000) -> torch.Tensor:
    """Shares of the tokens over n independent draws (as noise ids)."""
    drawn = how.draw(logits_V.expand(n, -1), list(range(n)), step=0)
    return torch.bincount(drawn, minlength=len(logits_V)) / n


def reference(temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Filtered probabilities, token by token: temperature, then top-k, then the least set of mass top-p."""
    p = (LOGITS / temperature).softmax(-1)
    kept = p.sort(descending=True).indices[: top_k or len(p)].tolist()
    p = torch.where(torch.tensor([i in kept for i in range(len(p))]), p, 0.0)
    p = p / p.sum()
    mass, chosen = 0.0, []
    for index in p.sort(descending=True).indices.tolist():
        if mass >= top_p:
            break
        chosen.append(index)
        mass += float(p[index])
    p = torch.where(torch.tensor([i in chosen for i in range(len(p))]), p, 0.0)
    return p / p.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (2.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.8), (0.7, 4, 0.9), (1.5, 0, 0.999999)],
)
def test_tokens_are_drawn_as_the_filtered_softmax_says(temperature, top_k, top_p):
    found = frequencies(Sampler(False, temperature, top_k, top_p, seed=1), LOGITS)
    expected = reference(temperature, top_k, top_p)
    assert (found - expected).abs().max() < 0.025
    assert not found[expected == 0].any()


def test_top_p_reaches_beyond_the_first_candidates():
    """A flat vocabulary larger than the first look, where top-p keeps nearly all of it."""
    how = Sampler(False, 1.0, 0, 0.99, seed=0)
    drawn = how.draw(torch.zeros(400, 5000), list(range(400)), step=0)
    assert len(drawn.unique()) > 350


def test_rows_of_one_noise_id_draw_alike_and_others_do_not():
    how = Sampler(False, 1.0, 0, 1.0, seed=3)
    drawn = how.draw(torch.zeros(3, 1000), [7, 7, 8], step=2)
    assert drawn[0] == drawn[1] != drawn[2]
    assert how.draw(torch.zeros(1, 1000), [8], step=2)[0] == drawn[2]
    assert how.draw(torch.zeros(1, 1000), [8], step=3)[0] != drawn[2]
    assert Sampler(False, 1.0, 0, 1.0, seed=4).draw(torch.zeros(1, 1000), [8], step=2)[0] != drawn[2]


def test_noise_is_exponential_and_other_for_every_stream():
    streams = torch.tensor([stream(*source) for source in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))])
    many = exponential(streams[:, None], torch.arange(100_000))
    assert (many > 0).all()
    assert many.isfinite().all()
    for row in many:
        assert row.mean() == pytest.approx(1.0, abs=0.02)
        assert row.var() == pytest.approx(1.0, abs=0.05)
    assert (torch.corrcoef(many) - torch.eye(4)).abs().max() < 0.02
    assert (torch.corrcoef(torch.stack([many[0, :-1], many[0, 1:]]))[0, 1]).abs() < 0.02


def test_a_tokens_noise_is_a_pure_function():
    start, some = torch.tensor(stream(1, 2, 3)), torch.tensor([7, 49_151, 0])
    assert torch.equal(exponential(start, some), exponential(start, torch.arange(49_152))[some])


def test_the_models_own_settings_hold_where_nothing_is_said():
    defaults = SamplingDefaults(temperature=0.6, top_k=64, top_p=0.95)
    assert sampler(SampleSettings(), defaults) == Sampler(False, 0.6, 64, 0.95, 0)
    asked = SampleSettings(temperature=1.0, top_k=0, top_p=1.0, greedy=True, seed=5)
    assert sampler(asked, defaults) == Sampler(True, 1.0, 0, 1.0, 5)
