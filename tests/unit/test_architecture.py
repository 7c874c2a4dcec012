"""The import directions of docs/architecture.md, read from the source."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = "config records printing sources data models vectors forward generate evaluate dose heal runs engine"
ORDER = [*ROOMS.split(), "cli", "__main__"]
TORCH_SIDE = {"torch", "transformers", "duckdb", "peft", "safetensors"}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, inside a function) of every import in the file; ruff refuses relative ones."""
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            found += [(name, id(node) in inner) for name in names]
    return found


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", sources("steer_heal"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_imports_only_upwards(path):
    name = path.relative_to(ROOT / "steer_heal").with_suffix("").parts[0]
    assert name in {*ORDER, "__init__"}, f"give {name} a place in ORDER and in docs/architecture.md"
    for module, _ in imports(path):
        assert module.split(".")[0] not in {"gradio", "components"}, f"{path} imports {module}"
        parts = module.split(".")
        if parts[0] == "steer_heal" and len(parts) > 1 and name in ORDER and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(name), (
                f"{path.name} imports {module}, which stands below it"
            )


@pytest.mark.parametrize("path", sources("components"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_page_knows_the_engine_only_by_its_face(path):
    for module, _ in imports(path):
        assert module.split(".")[0] not in TORCH_SIDE, f"{path} imports {module}"
        if module.startswith("steer_heal."):
            assert module.split(".")[1] in {"config", "records"}, f"{path} imports {module}"


@pytest.mark.parametrize(
    "path",
    [ROOT / "app.py", *sources("steer_heal", "components")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_import_hides_in_a_function(path):
    assert not [module for module, hidden in imports(path) if hidden]


def test_functions_stay_small():
    long = []
    for path in [ROOT / "app.py", *sources("steer_heal", "components", "benchmarks")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > 75:
                long.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not long
    assert (ROOT / "app.py").read_text().count("\n") < 80


RUN = """
import io, json, shlex, sys
from contextlib import redirect_stderr, redirect_stdout

sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # importing one of them fails
import app
from steer_heal import cli

ends = {}
for line in sys.argv[2:]:
    command, *arguments = shlex.split(line)
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        try:
            code = {"app": app, "cli": cli}[command].main(arguments)
        except SystemExit as end:
            code = end.code
    ends[line] = code, said.getvalue().count("\\n")
print(json.dumps(ends))
"""


def ends(blocked: str, *lines: str) -> dict[str, tuple[int, int]]:
    """Exit code and lines on stderr of each command, in a process that cannot import what is blocked."""
    command = [sys.executable, "-c", RUN, blocked, *lines]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line: tuple(end) for line, end in json.loads(done.stdout).items()}


def test_help_a_bad_argument_and_the_models_need_nothing_slow():
    expected = {
        "app --help": 0, "app --nonsense": 2, "app --port 99999": 2, "app --model 'no such model'": 2,
        "cli --help": 0, "cli heal --help": 0, "cli heal --rounds many": 2, "cli models": 0,
    }  # fmt: skip
    found = ends("torch,transformers,gradio,duckdb,numpy", *expected)
    assert {line: code for line, (code, _) in found.items()} == expected


WRONG = (
    "heal --rounds 0", "heal --set train.nonsense=1", "heal --trait nonsense",
    "heal --vignettes /no/such.jsonl", "heal --resume no-such-run", "dose --top-p 7",
    "dose --figure /no/such/folder/x.html", "eval --model nonsense", "eval --alpha inf", "eval --limit 0",
    "eval --adapter /no/such", "vector --band 0.6-0.4 --out x.npz", "vector --out /tmp",
    "vector --from /no/such --out x.npz", "export --run no-such-run", "results --run ../etc",
)  # fmt: skip


def test_wrong_arguments_are_refused_before_the_networks_libraries_are_imported():
    found = ends("torch,transformers", *(f"cli {line}" for line in WRONG))
    assert found == {f"cli {line}": (2, 1) for line in WRONG}


OF_OTHERS = {"_exit", "_forward_hooks", "_forward_pre_hooks", "_attn_implementation", "_name_or_path"}
"""Names of Python's, torch's and transformers' own that tests look at."""


def hidden_names(path: Path) -> list[str]:
    """Names with an underscore before them that a test takes from elsewhere: imported, read or replaced."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found += [] if own else [node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            named = [one.value for one in node.args if isinstance(one, ast.Constant)]
            found += [name.rpartition(".")[2] for name in named if isinstance(name, str)]
    return [name for name in found if name.startswith("_") and not name.startswith("__")]


@pytest.mark.parametrize("path", sources("tests"), ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_go_through_what_is_public(path):
    assert set(hidden_names(path)) <= OF_OTHERS
