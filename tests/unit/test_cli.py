"""The command line: help, exit codes, JSON on stdout, one sentence on stderr; any output, any encoding."""

import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import app
from steer_heal import cli, models
from steer_heal.cli import BAD_INPUT, INTERRUPTED, main, store
from steer_heal.cli.arguments import COMMANDS, STORE_ACTIONS, evaluate
from steer_heal.cli.tables import Column, Out, clean, number, table
from steer_heal.config import FOUNDATIONS, SettingsError, heal_settings
from steer_heal.engine.run_index import EXAMPLE_ID
from steer_heal.runs import worker
from steer_heal.runs.jobs import LocalProcesses
from tests import tiny
from tests.runs import profile, write_run

pytestmark = pytest.mark.usefixtures("here")
SEVEN = {"care", "fairness", "loyalty", "authority", "sanctity", "liberty", "social_norms"}


@pytest.mark.parametrize("name", ["", "eval", *(add.__name__ for add in COMMANDS if add is not evaluate)])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"] if name else ["--help"])
    assert ended.value.code == 0
    assert "usage: python -m steer_heal" in capsys.readouterr().out


def test_all_actions_of_the_store_are_there() -> None:
    assert set(STORE_ACTIONS) == set(store.ACTIONS)


BAD = [
    [],
    ["nonsense"],
    ["heal", "--model", "no such model"],
    ["heal", "--set", "train.epochs"],
    ["heal", "--runs", "/dev/null/x"],
    ["dose", "--temperature", "hot"],
    ["dose", "--alphas", "0,one"],
    ["dose", "--model", "tiny", "--trait", "nonsense"],
    ["eval", "--model", "tiny", "--vignettes", "/no/such.jsonl"],
    ["steer"],
    ["steer", "Hi", "--model", "tiny", "--mix", "care_over_autority"],
    ["dose", "--model", "tiny", "--mix", "care_over_authority @answer", "--where", "prompt"],
    ["heal", "--mix", "liberty_over_custom - care_over_authority"],
    ["heal", "--mix", "care_over_autority"],
    ["steer", "Hi", "--model", "tiny", "--where", "nowhere"],
    ["vector", "--model", "tiny", "--out", "/dev/null/x/v.safetensors"],
    ["vector", "--model", "tiny", "--method", "magic", "--out", "w.npz"],
    ["eval", "--model", "tiny", "--theirs"],
    ["export", "--run", "run-1", "--push", "nonsense"],
    ["results", "--run", "nothing-there"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_sentence_and_exit_code_2(run: Any, here: Path, arguments: list[str]) -> None:
    """Others, and those that need neither torch nor a model: `test_architecture.WRONG`."""
    code, out, err = run(*arguments)
    assert code == BAD_INPUT
    assert LocalProcesses(here / "runs").runs() == []
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_dose_eval_and_vector_on_a_model(run: Any, told: Any, here: Path) -> None:
    few = ("--model", "tiny", "--band", "0.25-0.75")
    assert told("vector", *few, "--out", "v.safetensors")["layers"] == [1, 2]
    assert (here / "v.safetensors").stat().st_size > 0
    document = told(
        "dose", *few, "--alphas", "0,1", "--n-vignettes", "1", "--prompt", "Hi", "--tokens", "4",
        "--figure", "dose.html", "--temperature", "0.5", "--top-k", "-1", "--controls", "2",
    )  # fmt: skip
    assert [row["alpha"] for row in document["rows"]] == [0.0, 1.0]
    drawn = {"temperature": 0.5, "top_k": 0, "top_p": 0.95}
    assert document["sample"] == {"max_new_tokens": 4, "seed": 0, "greedy": False, **drawn}
    measured = {"coherence", "kl_p95", "repetition", "perplexity", "relevance", "trait_shift", *SEVEN}
    assert {"verdict", "text_verdict", "answers_verdict", *measured} <= set(document["rows"][0])
    assert all(row["verdict"] == row["text_verdict"] for row in document["rows"])
    held = document["controls"]
    assert len(held["random"]) == 2 == len(held["c_stars"])
    assert held["as_far"] == sum(x >= document["rows"][1]["trait_shift"] for x in held["random"])
    assert "plotly" in (here / "dose.html").read_text()
    document = told("steer", "Hi", *few, "--where", "after  2", "--tokens", "4")
    assert document["where"] == "after 2"
    shares = [token["share"] for token in document["tokens"]]
    assert shares == [0.0, 0.0, 1.0, 1.0][: len(shares)]
    code, out, _ = run("steer", "Hi", *few, "--tokens", "4", "--greedy")
    assert code == 0
    assert "alpha 1 of care_over_authority, steered: prompt and answer" in out
    mix = "0.5 care_over_authority - liberty_over_custom"
    document = told("steer", "Hi", *few, "--mix", f"{mix} @answer", "--tokens", "4")
    assert document["c_star"] is None
    assert document["dose_nats"] > 0.0
    document = told("dose", *few, "--mix", mix, "--alphas", "0,1", "--n-vignettes", "1", "--tokens", "4")
    assert [row["alpha"] for row in document["rows"]] == sorted([0.0, 1.0, document["one_nat"]])
    assert 0 <= document["controls"]["as_far"] <= 8
    document = told("effect", *few, "--mix", mix, "--controls", "2")
    assert len(document["controls"]["random"]) == 2
    assert 0 <= document["as_far"] <= 2
    rows = told("eval", *few, "--limit", "2", "--alpha", "2")["rows"]
    assert [(row["stage"], row["alpha"]) for row in rows] == [("base", 0.0), ("steered", 2.0)]
    assert set(rows[0]) >= SEVEN
    code, out, _ = run("eval", *few, "--limit", "2", "--alpha", "2")
    changes = [abs(float(line.split()[-1])) for line in out.splitlines()[3:10]]
    assert changes == sorted(changes, reverse=True)


def test_what_a_model_lacks_is_said_beside_its_numbers(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny.language_model()
    lm.note = "Its chats do not begin with BOS."
    monkeypatch.setattr(models, "load", lambda *_args, **_more: lm)
    code, out, err = run("eval", "--model", "tiny", "--limit", "1")
    assert code == 0
    assert "tiny-gemma3: Its chats do not begin with BOS." in err
    assert "BOS" not in out
    assert json.loads(run("doctor", "--no-test", "--json")[1])["note"] == lm.note


def test_dose_grid_shows_every_layer_and_band(run: Any, here: Path) -> None:
    few = ("--model", "tiny", "--alphas", "0,1", "--n-vignettes", "1")
    code, out, err = run("dose", "--grid", *few, "--json", "--figure", "grid.html")
    assert (code, "grid.html" in err) == (0, True)
    assert len(json.loads(out)["rows"]) == 2 * (4 + 2)
    assert (here / "grid.html").exists()


def test_ctrl_c_is_said_and_has_its_own_code(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steer_heal.cli.results.RunIndex", interrupted)
    code, _, err = run("results")
    assert (code, err) == (INTERRUPTED, "Stopped.\n")


def test_doctor_tells_of_a_missing_model(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise SettingsError("It is not there.")

    monkeypatch.setattr(models, "load", missing)
    code, out, _ = run("doctor", "--json")
    assert code == 1
    assert json.loads(out)["problems"] == ["bundled_model: It is not there."]


def test_a_table_is_aligned_and_cannot_be_broken_by_what_it_shows() -> None:
    rows = [{"name": "a\n\x1b[2Jb", "value": 1.23456}, {"name": "longer than the heading", "value": None}]
    lines = table([Column("name", "name"), number("value", "value")], rows).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("a  [2Jb")
    assert lines[1].endswith("1.235")
    assert len(lines[1]) == len(lines[2])
    assert clean("\u202eevil\u0007") == " evil "


def test_progress_never_reaches_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out = Out(as_json=True, clock=itertools.count(0.0, 20.0).__next__)
    out.progress("working")
    out.text("for people")
    out.document({"x": math.nan})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"x": None}
    assert "working" in captured.err


NAME = "caf\u00e9 \U0001f600"
ENCODINGS = ("ascii", "latin-1", "utf-8")


def printed(encoding: str, call: Callable[[], int]) -> tuple[int, str, str]:
    """The exit code, and what is said to a stdout and a stderr that refuse what their encoding lacks."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = call()
    said = []
    for stream in (out, err):
        stream.flush()
        said.append(stream.buffer.getvalue().decode(encoding))
    return code, said[0], said[1]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_results_are_printed_as_far_as_the_output_can_and_json_stays_whole(here: Path, encoding: str) -> None:
    write_run(here / "runs" / "care-1" / "events.jsonl", name=NAME)
    code, said, _ = printed(encoding, lambda: cli.main(["results"]))
    assert code == 0
    assert NAME.encode(encoding, "backslashreplace").decode(encoding) in said
    code, said, _ = printed(encoding, lambda: cli.main(["results", "--json"]))
    assert code == 0
    assert NAME in [run["name"] for run in json.loads(said)["runs"]]
    assert (NAME in said) == (encoding == "utf-8")


@pytest.mark.parametrize("name", [NAME, "half a character \ud83d", "bytes of a file's name \udcff"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_refusal_is_printed_by_every_entry_point(here: Path, encoding: str, name: str) -> None:
    for call in (
        lambda: cli.main(["results", "--run", name]),
        lambda: app.main(["--model", "demo", "--login-file", name]),
        lambda: worker.main([str(here / name)]),
    ):
        code, _, said = printed(encoding, call)
        assert code == 2
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("streams", "given"),
    [(">&-", "models --json"), ("2>&-", "results --run ../etc"), (">&- 2>&-", "models --json")],
)
def test_a_closed_output_takes_everything(streams: str, given: str) -> None:
    done = shell(f"{given} {streams}")
    assert done.returncode == (0 if "--json" in given else 2)
    assert "Traceback" not in done.stderr


def test_an_output_that_nobody_reads_any_more_ends_nothing() -> None:
    done = shell("models 2> >(cat >&2) | true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_sentence() -> None:
    done = shell("models > /dev/full")
    assert done.returncode == cli.NOT_WRITTEN
    assert done.stderr.startswith("Not all could be written (No space left on device): choose another")
    assert done.stderr.count("\n") == 1


def shell(rest: str) -> subprocess.CompletedProcess[str]:
    """The command line as a shell calls it."""
    command = ["bash", "-c", f"{sys.executable} -m steer_heal {rest}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(app.__file__).parent)


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
