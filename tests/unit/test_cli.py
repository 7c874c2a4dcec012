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
from steer_heal.config import SettingsError
from steer_heal.runs import worker
from steer_heal.runs.jobs import LocalProcesses
from tests import tiny
from tests.runs import write_run

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
