"""The named endpoints through a real server and gradio_client, on the fake engine; the guide's examples."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from components import api
from steer_heal.config import SettingsError
from tests.fake_engine import FakeEngine
from tests.unit.test_openai import served

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "notebook.md"


@pytest.fixture(scope="module")
def engine():
    return FakeEngine(delay=0.0, round_seconds=0.2)


@pytest.fixture(scope="module")
def url(engine):
    with served(engine) as address:
        yield address.removesuffix("/v1")


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


def test_every_parameter_of_every_action_has_a_description(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert named
    for endpoint in named.values():
        for parameter in endpoint["parameters"]:
            assert f"{parameter['parameter_name']}: " in endpoint["description"]


def test_talking_streams_every_voice_and_refuses_what_is_none(client):
    said = [{"role": "user", "content": "hello"}]
    job = client.submit(said, ["base", "steered"], n=2, seed=3, api_name="/talk")
    last = job.result()
    assert last["done"]
    assert [len(some) for some in last["answers"]] == [2, 2]
    assert "seed 3" in last["answers"][0][1]["text"]
    assert last["answers"][0][0]["health"]["verdict"] == "fine"
    assert len(job.outputs()) > 1
    with pytest.raises(AppError, match="is nobody who answers"):
        client.predict(said, ["somebody"], api_name="/talk")


def test_how_tokens_are_drawn_can_be_said(client, engine):
    client.predict("as told", temperature=0, top_p=0.5, top_k=-1, api_name="/steer")
    client.predict("as the model is", api_name="/steer")
    told, own = (call.sample for call in engine.calls[-2:])
    assert (told.temperature, told.top_p, told.top_k) == (0.0, 0.5, 0)
    assert (own.temperature, own.top_p, own.top_k) == (None, None, None)
    assert set(client.predict(api_name="/describe")["model"]["sampling"]) == {"temperature", "top_p", "top_k"}
    with pytest.raises(AppError, match="top_p must be at most 1"):
        client.predict("as told", top_p=7, api_name="/steer")
    with pytest.raises(AppError, match="top_p must be at most 1"):
        client.predict([1.0], top_p=7, api_name="/sweep")


def test_which_tokens_are_steered_can_be_said(client, engine):
    found = client.submit("gated", where="first 2", tokens=4, api_name="/steer").result()
    assert found["shares"] == [1.0, 1.0, 0.0, 0.0]
    assert engine.calls[-1].where == "first 2"
    with pytest.raises(AppError, match="says no place: write both, prompt, answer, first N"):
        client.predict("gated", where="nowhere", api_name="/steer")


def test_a_trait_is_made_of_poles_replies_scenes_and_a_target(client):
    made = client.predict("wild", "tame", [["Ho!", "Hm."]], "Care=-1", ["May I?"], api_name="/make_trait")
    assert (made["name"], made["target"]) == ("wild-over-tame", {"Care": -1})
    assert (made["scenes"], made["replies"]) == (["May I?"], [["Ho!", "Hm."]])
    assert made["name"] in [trait["name"] for trait in client.predict(api_name="/describe")["traits"]]
    with pytest.raises(AppError, match="give two that differ"):
        client.predict("wild", "wild", api_name="/make_trait")


def test_a_mix_is_steered_with_its_own_kl(client, engine):
    mix = "0.8 care_over_authority - 0.4 candour_over_tact @answer"
    found = client.submit("mixed", alpha=2.0, mix=mix, tokens=4, api_name="/steer").result()
    assert found["dose_nats"] == 4.0
    assert found["shares"] == [1.0] * 4
    assert engine.calls[-1].mix == mix
    with pytest.raises(AppError, match=r"character 1: expected a trait .nearest: care_over_authority"):
        client.predict("mixed", mix="care_over_autority", api_name="/steer")
    with pytest.raises(AppError, match="say it in one of the two"):
        client.predict(alphas=[1.0], mix=mix, where="prompt", api_name="/sweep")
    run = client.predict(mix=mix, rounds=1, api_name="/launch")
    assert engine.runs.settings(run).mix == mix
    with pytest.raises(AppError, match="choose care_over_authority as trait, not candour_over_tact"):
        client.predict(mix=mix, trait="candour_over_tact", api_name="/launch")
    assert client.predict(mix=mix, api_name="/effect")["as_far"] >= 0


def test_what_tokens_carry_is_told_to_who_asks(client):
    found = client.submit("carried", carried=True, tokens=4, api_name="/steer").result()
    assert found["carries"] == {"base": [-3.0, -2.0, -1.0, 0.0], "steered": [1.0, 2.0, 3.0, 1.0]}
    plain = client.submit("carried", tokens=4, api_name="/steer").result()
    assert plain["carries"]["steered"] == [None] * 4


def test_a_sweep_gives_a_row_a_dose_and_what_controls_move_where_they_were_asked_for(client):
    found = client.predict(alphas=[0.0, 1.0], api_name="/sweep")
    assert [row["alpha"] for row in found["rows"]] == [0.0, 1.0]
    assert set(found["rows"][0]["p"]) >= {"Care", "SocialNorms"}
    assert {"text_verdict", "answers_verdict", "relevance"} <= set(found["rows"][0])
    assert found["controls"] is None
    assert len(client.predict(alphas=[1.0], controls=3, api_name="/sweep")["controls"]["random"]) == 3
    found = client.predict(controls=2, api_name="/effect")
    assert len(found["controls"]["random"]) == 2
    assert (found["as_far"], found["movement"] > 0.0) == (0, True)


def test_an_effect_ends_with_its_reader_and_says_when_it_was_ended_before():
    stopped = []
    engine = SimpleNamespace(effect=lambda _request, session: iter([session]), stop=stopped.append)
    effect = api.Actions(engine).effect  # type: ignore[arg-type]
    reading = effect()
    session = next(reading)["measuring"]
    reading.close()
    assert stopped == [session]
    with pytest.raises(SettingsError, match="stopped before it was measured: ask again"):
        list(effect())


def test_a_run_is_watched_to_its_end(client):
    last = client.submit(client.predict(rounds=1, api_name="/launch"), 30.0, api_name="/watch").result()
    assert last["status"] == "finished"
    assert {node["stage"] for node in last["nodes"]} >= {"base", "healed"}


def test_a_run_is_paused_cloned_and_resumed(client):
    first = client.predict(rounds=32, api_name="/launch")
    client.predict(first, api_name="/pause")
    second = client.predict(first, {"seed": 4, "train": {"epochs": 1}}, api_name="/clone")
    rows = {row["run_id"]: row for row in client.predict(api_name="/runs")}
    assert rows[first]["status"] == "paused"
    assert (rows[second]["seed"], rows[second]["rounds"]) == (4, 32)
    client.predict(first, api_name="/resume")
    with pytest.raises(AppError, match="train"):
        client.predict(first, {"train": 3}, api_name="/clone")


def test_a_sweep_is_started_listed_read_stopped_and_resumed(client):
    sweep = client.predict(["seed=7,8"], rounds=32, api_name="/start_sweep")
    assert [cell["values"] for cell in sweep["cells"]] == [{"seed": 7}, {"seed": 8}]
    assert client.predict(api_name="/list_sweeps")[0] == sweep
    sweep_id = sweep["sweep_id"]
    assert client.predict(sweep_id, api_name="/stop_sweep") == 2
    table = client.predict(sweep_id, api_name="/sweep_table")
    assert [cell["status"] for cell in table["cells"]] == ["cancelled", "cancelled"]
    assert table["base"]["rounds"] == 32
    assert client.predict(sweep_id, api_name="/resume_sweep") == sweep
    for axes, said in (
        (["seed=0..99999"], "100,000 runs"),
        (["sed=1"], "perhaps seed"),
        ([], "needs an axis"),
    ):
        with pytest.raises(AppError, match=said):
            client.predict(axes, api_name="/start_sweep")
    with pytest.raises(AppError, match="no sweep"):
        client.predict("sweep-of-nobody", api_name="/sweep_table")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("There is no run a in /home/me/runs: copy it.", "There is no run a in runs: copy it."),
        ("'/a/b/c.jsonl' line 3: bad.", "'c.jsonl' line 3: bad."),
        ("Cannot write /a/b: try 1/2 of it/that.", "Cannot write b: try 1/2 of it/that."),
        ("See google/gemma-3-1b-it.", "See google/gemma-3-1b-it."),
    ],
)
def test_a_client_is_told_no_folder_of_this_machine(said, shown):
    assert api.placeless(said) == shown


def test_the_examples_in_the_guide_run(url, capsys):
    text = GUIDE.read_text().split("## Drive the page")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block.replace("http://127.0.0.1:7860", url), {})
    assert "finished" in capsys.readouterr().out
