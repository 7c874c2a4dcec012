"""An output that cannot show a character: every entry point goes on, and its JSON stays JSON."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import app
from steer_heal import cli
from steer_heal.runs import worker
from tests.runs import write_run

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
