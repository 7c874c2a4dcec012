"""A run's rounds merged into the base: a plain transformers model that needs neither peft nor us."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from steer_heal.config import SettingsError
from steer_heal.heal.adapters import AdapterStack, saved_rounds
from steer_heal.models import LanguageModel, find


def merge(lm: LanguageModel, adapters: str | Path, target: str | Path, *, rounds: int | None = None) -> Path:
    """Save W + sum of the rounds' B A * alpha / r, in the base files' own number format, to `target`.

    `adapters`: a run's folder of `round-N`; `rounds`: only the first so many. The sum is made in the loaded
    model's precision and rounded once, so that the saved model differs from base with adapters by that
    rounding alone. `lm` is used up: its weights are the merged ones afterwards. Errors: `SettingsError` when
    there is no round, the target is not empty or cannot be written, or an adapter does not fit.
    """
    adapters, target = Path(adapters), Path(target)
    wanted = [number for number in saved_rounds(adapters) if rounds is None or number <= rounds]
    if not wanted:
        raise SettingsError(f"{adapters} holds no finished round: there is nothing to merge.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SettingsError(f"{target} is not empty: choose a new folder.")
    stack = AdapterStack(lm)
    for number in wanted:
        stack.load(number, adapters)
    plain: Any = stack.merge()
    dtype = stored_dtype(lm)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        plain.to(dtype).save_pretrained(draft)
        lm.tokenizer.save_pretrained(draft)
        for file in draft.iterdir():
            file.chmod(0o644)
        if target.exists():
            target.rmdir()
        draft.replace(target)
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"Cannot write {target} ({error}): choose another folder.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def stored_dtype(lm: LanguageModel) -> torch.dtype:
    """The number format of the base's own files; the loaded one where they are not at hand."""
    folder = find(lm.name).path
    file = next(iter(sorted(folder.glob("*.safetensors"))), None) if folder else None
    if file is None:
        return lm.dtype
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(next(iter(opened.keys()))).dtype
