"""heal on the command line, and results and export of what it wrote."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from steer_heal.cli import BAD_INPUT
from steer_heal.config import FOUNDATIONS, heal_settings
from steer_heal.engine.run_index import EXAMPLE_ID
from steer_heal.runs.jobs import LocalProcesses
from tests import tiny
from tests.runs import profile, write_run
from tests.unit.test_cli import SEVEN

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def healing(monkeypatch):
    """A loop without a model, that ends as told."""

    def put(*, ends: str = "finished", worth: dict[str, Any] | None = None, **facts: Any) -> None:
        def measured(social_norms: float, care: float) -> dict[str, Any]:
            return profile(social_norms, care) | {"agreement": worth}

        def loop(_lm: Any, settings: Any, _folder: Path, *, start_round: int = 0, **_rest: Any) -> Any:
            if not start_round:
                yield "profile", 0, {"stage": "base", "alpha": 0.0, **measured(0.64, 0.25)}
                yield "answers", 0, {"prompts": ["p"], "texts": ["t"]}
            for round_ in range(start_round + 1, settings.rounds + 1):
                yield "vector", round_, {"norm": 1.0, "message": "a and b are parallel."}
                yield "stage", round_, {"stage": "calibrate", "n_stages": 7, "index": 2}
                yield "calibrated", round_, {"c_star": 16.0, "kl_p95": 1.0}
                yield "profile", round_, {"stage": "steered", "alpha": 1.0, **measured(0.52, 0.35)}
                yield "step", round_, {"step": 1, "total": 2, "loss": math.nan}
                if ends != "finished":
                    yield ends, None, {"message": f"it {ends}"}
                    return
                yield "profile", round_, {"stage": "healed", "alpha": 0.0, **measured(0.55, 0.33)}
                done = {"retention": 0.8, "kept": 2, "made": 3, "c_star": 16.0, "seconds": 1.0}
                yield "round", round_, {**done, **facts}
            yield "finished", None, {"reason": "all done"}

        monkeypatch.setattr("steer_heal.runs.worker.heal.run", loop)
        monkeypatch.setattr("steer_heal.runs.worker.models.load", lambda _name: tiny.shared())

    return put


def test_a_foreign_store_is_refused_before_a_run_begins(run, healing, here):
    healing()
    (here / "runs.duckdb").write_text("mine")
    code, _, err = run("heal")
    assert code == BAD_INPUT
    assert "--db" in err
    assert not (here / "runs").exists()


def test_heal_prints_base_then_steered_and_healed_of_each_round(run, healing):
    healing()
    code, out, err = run("heal", "--rounds", "2")
    assert code == 0
    assert "Round 2: a and b are parallel.\n" in err
    lines = [line.split() for line in out.strip().splitlines()]
    assert [line[:2] for line in lines[1:6]] == [
        ["0", "base"], ["1", "steered"], ["1", "healed"], ["2", "steered"], ["2", "healed"]
    ]  # fmt: skip
    assert lines[3][-3:] == ["0.80", "2", "3"]
    assert "SocialNorms" in lines[0]
    assert "Loyalty" not in lines[0]


def test_heal_says_what_its_model_lacks_and_shows_all_seven_on_request(run, healing, monkeypatch):
    healing()
    lm = tiny.language_model()
    lm.note = "Its chats do not begin with BOS."
    monkeypatch.setattr("steer_heal.runs.worker.models.load", lambda _name: lm)
    _, out, err = run("heal", "--rounds", "1", "--all")
    assert f"tiny-gemma3: {lm.note}\n" in err
    assert set(FOUNDATIONS) <= set(out.splitlines()[0].split())


SAID = {"word": "healed", "why": "retention 0.80", "thresholds": {"spill": 1.0}}


@pytest.mark.parametrize(("as_far", "beyond"), [(None, None), (0, True), (2, False)])
def test_heal_json_is_one_document_whose_rows_carry_what_a_round_is_judged_by(told, healing, as_far, beyond):
    facts = {"facts_kept": 0.95, "neutral_kl": 0.123, "headline": SAID}
    worth = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 1 / 7}
    healing(worth=worth, **facts, **({} if as_far is None else {"as_far": as_far}))
    document = told("heal", "--rounds", "1", "--top-p", "1")
    assert (document["status"], document["settings"]["data"]["top_p"]) == ("finished", 1.0)
    base, steered, healed = document["rows"]
    assert {"alpha", "round", "stage", "coherence", *SEVEN} <= set(base)
    assert {"verdict", "text_verdict", "answers_verdict"} <= set(base)
    assert (steered["kl_p95"], steered["c_star"]) == (1.0, 16.0)
    wanted = {**facts, "retention": 0.8, "kept": 2, "made": 3, "beyond_random": beyond}
    assert {key: healed[key] for key in wanted} == wanted
    for row in (base, steered, healed):
        assert (row["agreement"], row["relevance"], row["diversity"]) == (0.5, 0.7, 0.8)
        assert row["perplexity_ratio"] == 1.1


def test_heal_says_the_headline_and_the_cost_of_each_round(run, healing):
    healing(facts_kept=0.95, neutral_kl=0.123, headline=SAID)
    lines = run("heal", "--rounds", "1")[1].splitlines()
    neutral = "  KL from base on neutral prompts 0.12 nats a token"
    said = lines.index("  healed: retention 0.80")
    assert lines[said + 1 : said + 4] == ["  facts kept 95%", neutral, "  judged by: spill 1"]
    healing(facts_kept=None, neutral_kl=None, headline=SAID)
    lines = run("heal", "--rounds", "1")[1].splitlines()
    assert lines[lines.index("  healed: retention 0.80") + 1] == "  judged by: spill 1"


def test_a_clone_has_the_settings_of_the_other_but_for_what_is_given(run, told, healing):
    healing()
    run_id = told("heal", "--rounds", "2", "--seed", "5", "--set", "train.lam=0.7")["run_id"]
    document = told("heal", "--clone", run_id, "--seed", "6", "--set", "train.epochs=1")
    assert document["run_id"] != run_id
    settings = document["settings"]
    assert (settings["rounds"], settings["seed"]) == (2, 6)
    assert (settings["train"]["lam"], settings["train"]["epochs"]) == (0.7, 1)
    assert run("heal", "--clone", run_id, "--preset", "standard")[0] == 2
    assert run("heal", "--clone", "no-such-run")[0] == 2


@pytest.mark.parametrize(("ends", "code"), [("failed", 1), ("cancelled", 3)])
def test_heal_exits_0_only_when_finished_and_can_be_resumed(run, told, healing, ends, code):
    healing(ends=ends)
    got, out, _ = run("heal", "--rounds", "2", "--json")
    assert got == code
    document = json.loads(out)
    assert document["message"] == f"it {ends}"
    healing()
    assert [row["round"] for row in told("heal", "--resume", document["run_id"])["rows"]] == [0, 1, 1, 2, 2]


def test_results_shows_what_heal_wrote_to_the_store(run, told, healing):
    healing()
    run("heal", "--rounds", "2", "--name", "a \x1b[31mname")
    document = told("results")
    mine = next(row for row in document["runs"] if row["run_id"] != EXAMPLE_ID)
    assert (mine["status"], mine["round"], mine["retention"]) == ("finished", 2, 0.8)
    rows = [row for row in document["rows"] if row["run_id"] == mine["run_id"]]
    assert {"alpha", "round", "stage", "care", "social_norms", "coherence", "retention"} <= set(rows[0])
    assert [row["stage"] for row in rows] == ["base", "steered", "healed", "steered", "healed"]
    code, out, _ = run("results")
    assert code == 0
    assert "demo, care_over_authority" in out
    assert "\x1b" not in out
    code, out, _ = run("results", "--run", mine["run_id"])
    assert len(out.strip().splitlines()) == 6


def test_results_starts_nothing(told, here):
    launcher = LocalProcesses(here / "runs")
    folder = launcher.create(heal_settings(model="demo"))
    assert told("results")["runs"][0]["status"] == "queued"
    assert folder.process() is None


def test_export_writes_tables_log_and_settings(run, told, healing, here):
    healing()
    run_id = told("heal", "--rounds", "1")["run_id"]
    (here / "runs" / run_id / "adapters" / "round-1").mkdir(parents=True)
    (here / "runs" / run_id / "adapters" / "round-1" / "adapter_config.json").write_text("{}")
    files = told("export", "--run", run_id, "--out", "out", "--format", "csv")["files"]
    names = {str(Path(file).relative_to("out")) for file in files}
    assert {"tables/profiles.csv", "tables/moral_map.csv", "config.json", "events.jsonl"} <= names
    assert "adapters/round-1/adapter_config.json" in names
    assert run("export", "--run", run_id, "--out", "out")[0] == BAD_INPUT


def test_the_example_is_a_trimmed_log_that_shows_the_same_map(run, here):
    run_id = "care-20260101-000000-abcd"
    write_run(here / "runs" / run_id / "events.jsonl")
    (here / "runs" / run_id / "config.json").write_text(heal_settings(model="demo").model_dump_json())
    code, _, _ = run("export", "--run", run_id, "--example", "--out", "example")
    assert code == 0
    lines = [json.loads(line) for line in (here / "example" / "events.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    assert "progress" not in {line["kind"] for line in lines}
    assert not any("per_vignette" in line["data"] or "host" in line["data"] for line in lines)
    assert sum(line["kind"] == "profile" for line in lines) == 5
