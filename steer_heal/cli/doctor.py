"""`doctor`: what this machine has, in plain words."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import try_to_load_from_cache

from steer_heal import models
from steer_heal.cli.options import Commands, Namespace, add_places, command
from steer_heal.cli.tables import Out
from steer_heal.config import DEFAULT_MODEL, GEMMA, SettingsError
from steer_heal.jobs import LocalProcesses
from steer_heal.store import Store, StoreBusy

PACKAGES = ("torch", "transformers", "peft", "duckdb", "gradio")
GIB = 2**30


def add(commands: Commands) -> None:
    made = command(commands, "doctor", "Say what this machine has and what is missing.", run)
    add_places(made)


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when steering the bundled model and keeping runs would work."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu",
        "cpu_cores": os.cpu_count(),
        "memory_free_gib": round(psutil.virtual_memory().available / GIB, 1),
        "disk_free_gib": round(psutil.disk_usage(str(Path.cwd())).free / GIB, 1),
        "bundled_model": _try(lambda: models.load(DEFAULT_MODEL).info.architecture),
        "gemma_in_cache": isinstance(try_to_load_from_cache(GEMMA, "config.json"), str),
        "runs": len(LocalProcesses(args.runs).runs()),
        "store": _try(
            lambda: f"{len(Store(args.db).runs())} runs in {args.db}" if Path(args.db).exists() else "new"
        ),
    }
    problems = [
        f"{key}: {found[key][1:]}" for key in ("bundled_model", "store") if found[key].startswith("!")
    ]
    problems += [f"{name} is not installed: run `make app`." for name in PACKAGES if found[name] is None]
    width = max(map(len, found))
    out.text(*(f"{key.ljust(width)}  {value}" for key, value in found.items()))
    out.text("", *(problems or ["All is well."]))
    out.document({"command": "doctor", **found, "problems": problems})
    return 1 if problems else 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _try(find: Any) -> str:
    """What was found, or `!` and why not."""
    try:
        return find()
    except (SettingsError, StoreBusy) as error:
        return f"!{error}"
