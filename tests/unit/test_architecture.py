"""Import directions, read from the source; that what documents name is there; and what people run it with."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import app
from components import access
from steer_heal.cli.arguments import parser
from steer_heal.runs import events
from steer_heal.runs.store import Store
from tests.runs import write_run

ROOT = Path(__file__).parents[2]
ROOMS = "config records printing whole_file sources data models vectors forward generate evaluate dose"
ORDER = [*ROOMS.split(), "heal", "runs", "engine", "cli", "__main__"]
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


DOCS = ROOT / "docs"
GUIDES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")] + sorted(
    path for path in DOCS.rglob("*.md") if path.parent.name != "reports"
)
"""Pages for readers; reports are of their day."""
PAGES = [*GUIDES, *sorted((DOCS / "reports").glob("*.md"))]
HTML_ONLY = re.compile(r"\{[^}]*\}|`|\*|<[^>]+>|\\")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def leaves(nav: Any) -> Iterator[str]:
    """Every page that the navigation leads to."""
    for entry in nav:
        for value in entry.values():
            yield from leaves(value) if isinstance(value, list) else [value]


def anchors(page: Path) -> set[str]:
    """The places in a page that a link can name, as mkdocs and GitHub make them of its headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = [HTML_ONLY.sub("", said).lower() for said in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", said).strip()) for said in headings}


def commands(start: str) -> list[str]:
    """Arguments of each such command in a shell block; what follows `#` is a remark."""
    blocks = re.findall(r"```sh\n(.*?)```", "".join(path.read_text() for path in GUIDES), re.DOTALL)
    found = [line for block in blocks for line in block.splitlines()]
    return sorted({line.partition(start)[2].split("#")[0].strip() for line in found if start in line})


def test_the_navigation_leads_to_every_page_and_to_no_other():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(leaves(nav)) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        path, _, place = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert not place or place in anchors(target), f"{name_of(page)} links to {link}"
        outside = DOCS in page.parents and DOCS not in target.parents
        assert not outside, f"{name_of(page)} links to {link}, which is no page of the site"


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_file_that_is_named_is_there(page):
    named = re.findall(
        r"`((?:steer_heal|components|tests|docs|scripts|notebooks|deploy)/[^`\s]*)`", page.read_text()
    )
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_room_of_the_engine_has_its_reference():
    said = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    modules = set(re.findall(r"^::: ([\w.]+)$", said, re.MULTILINE))
    rooms = {f"steer_heal.{path.parent.name}" for path in (ROOT / "steer_heal").glob("*/__init__.py")}
    assert modules == {*rooms, "steer_heal.records", "components"} - {"steer_heal.cli", "steer_heal.data"}


@pytest.mark.parametrize("line", sorted({*commands("$S "), *commands("-m steer_heal ")}))
def test_a_command_is_taken(line: str) -> None:
    module = parser().parse_args(shlex.split(line.split(">")[0])).module
    assert callable(import_module(f"steer_heal.cli.{module}").run)


@pytest.mark.parametrize("line", commands("python app.py"))
def test_the_page_starts_with_what_is_named(line: str) -> None:
    assert app.arguments(shlex.split(line)).port == 7860


def test_the_notebook_reads_the_store_and_draws_the_map(tmp_path, monkeypatch):
    log = write_run(tmp_path / "r1" / "events.jsonl", name="x", seed=7)
    Store(tmp_path / "runs.duckdb", patience=1.0).ingest("r1", events.read(log))
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "notebooks" / "map.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert set(names["nodes"]["stage"]) == {"base", "steered", "healed"}
    markers = [trace for trace in names["figure"].data if trace.mode == "markers"]
    assert sum(len(trace.x) for trace in markers) == len(names["nodes"])
    assert len(names["profiles"])


def test_the_container_copies_what_is_there_and_starts_the_page():
    text = (ROOT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?:--\S+ )?(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"steer_heal", "components", "app.py", "requirements.txt"} & set(ignored)
    command = json.loads(re.search(r"^ENTRYPOINT (\[.+\])$", text, re.MULTILINE)[1])
    from_app = (ROOT / "app.py").read_text()
    assert all(f'"{flag}"' in from_app for flag in command if flag.startswith("--"))


def test_no_file_names_a_package_registry():
    """Where packages come from is for pip and its settings to say."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hosts = re.compile(rb"pypi[.](org|python)|pythonhosted[.]org|registry[.]npmjs|npmjs[.]org")
    files = [ROOT / name for name in listed.splitlines()]
    assert not [file for file in files if file.is_file() and hosts.search(file.read_bytes())]


def test_the_space_says_what_the_hub_reads():
    matter = yaml.safe_load((ROOT / "deploy" / "space" / "README.md").read_text().split("---")[1])
    exposed = re.search(r"^EXPOSE (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert (matter["sdk"], str(matter["app_port"])) == ("docker", exposed)
    assert len(matter["short_description"]) <= 60


def test_what_listens_for_others_is_told_its_login():
    for file in ("Dockerfile", "deploy/space/README.md"):
        assert access.LOGIN in (ROOT / file).read_text(), file
