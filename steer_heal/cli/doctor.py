"""`doctor`: what this machine has, in plain words."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import get_token
from huggingface_hub.constants import HF_HUB_CACHE

from steer_heal import models, sources
from steer_heal.cli import selftest
from steer_heal.cli.arguments import Namespace
from steer_heal.cli.selftest import Check
from steer_heal.cli.tables import Out
from steer_heal.config import DEMO, GEMMA, SettingsError
from steer_heal.models import user
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.store import Store, StoreBusy
from steer_heal.vectors.bridges import installed as bridges
from steer_heal.vectors.bridges.extraction import titles

PACKAGES = ("torch", "transformers", "peft", "accelerate", "duckdb", "gradio", "gguf")
GIB = 2**30


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when steering the bundled model and keeping runs would work."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": devices(),
        "cpu_cores": os.cpu_count(),
        "memory_free_gib": round(psutil.virtual_memory().available / GIB, 1),
        "disk_free_gib": round(psutil.disk_usage(str(Path.cwd())).free / GIB, 1),
        "model_cache": str(HF_HUB_CACHE),
        "models_folder": str(sources.home()),
        "models_here": ", ".join(row.name for row in sources.listed() if row.is_here),
        "gemma_in_cache": sources.in_cache(GEMMA),
        "logged_in_to_hub": get_token() is not None,
        "steering_lite": _package(bridges.STEERING_LITE),
        "tinymfv": _package(bridges.TINYMFV),
        "methods": ", ".join(titles(args.model)),
        "runs": len(LocalProcesses(args.runs).runs()),
        "store": _try(lambda: _kept(args.db)),
    }
    checks: list[Check] = []
    try:
        lm = models.load(args.model)
        found["bundled_model" if args.model == DEMO else "model"] = lm.info.architecture
        found["chat_template"] = template(lm)
        if lm.info.note:
            found["note"] = lm.info.note
        if not args.no_test:
            checks = [*selftest.run(lm)]
    except SettingsError as error:
        found["bundled_model" if args.model == DEMO else "model"] = f"!{error}"
    problems = [
        f"{key}: {value[1:]}" for key, value in found.items() if isinstance(value, str) and value[:1] == "!"
    ]
    problems += [f"{name} is not installed: run `make app`." for name in PACKAGES if found[name] is None]
    problems += [f"self-test {check.name}: {check.detail}" for check in checks if not check.ok]
    width = max(len(_words(key)) for key in found)
    out.text(*(f"{_words(key).ljust(width)}  {_plain(value)}" for key, value in found.items()))
    out.text(
        *(f"self-test {check.name.ljust(8)}  {check.detail} ({check.seconds:.1f} s)" for check in checks)
    )
    if missing := sources.default_model()[1]:
        out.text("", missing)
    out.text("", *(problems or ["All is well."]))
    tried = [asdict(check) for check in checks]
    out.document({"command": "doctor", **found, "self_test": tried, "problems": problems})
    return 1 if problems else 0


def devices() -> str:
    """The accelerators and their free memory, or the CPU."""
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        room = (torch.cuda.mem_get_info(index)[0] / GIB for index in range(torch.cuda.device_count()))
        return ", ".join(f"{name} ({free:.1f} GiB free)" for name, free in zip(names, room, strict=True))
    return "mps" if torch.backends.mps.is_available() else f"cpu ({torch.get_num_threads()} threads)"


def template(lm: models.LanguageModel) -> str:
    """How a chat is written: the first tokens of one, and what becomes of a system text."""
    text = lm.tokenizer.decode(lm.encode_chat([user("...")]))
    knows = lm.chat.has_system_role
    return f"{text!r}, system text {'where the template puts it' if knows else 'before the first user turn'}"


def _package(names: tuple[str, ...]) -> str:
    name = bridges.name(names)
    return f"{name} {bridges.release(name)}" if name else "not installed"


def _kept(db: str) -> str:
    return f"{len(Store(db).runs())} run(s) in {db}" if Path(db).exists() else "none yet"


def _words(key: str) -> str:
    """A key of the document for a person: the unit in brackets."""
    return key.removesuffix("_gib").replace("_", " ") + (" (GiB)" if key.endswith("_gib") else "")


def _plain(value: Any) -> str:
    """A value for a person."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "missing" if value is None else str(value)


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
