"""GGUF files: opened as the model they hold, converted once, and a sentence for each that cannot be."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from gguf import GGMLQuantizationType

from steer_heal import sources
from steer_heal.config import SettingsError
from steer_heal.models import convert, find, load, prepare, user
from tests import gguf_files, tiny
from tests.close import assert_near, model_rounding
from tests.tiny import logits


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "Tiny.GGUF")


@pytest.fixture
def broken(written, tmp_path):
    """The file with other bytes."""

    def change(change: Any) -> str:
        file = tmp_path / "broken.gguf"
        file.write_bytes(change(written.read_bytes()))
        return str(file)

    return change


def left(home: Path) -> list[str]:
    """What is in the folder of converted models, locks aside."""
    folder = home / "models"
    return sorted(file.name for file in folder.glob("*") if file.suffix != ".lock")


def test_a_gguf_file_is_the_model_it_holds(written, home):
    lm, original = load(str(written), device="cpu"), tiny.shared("llama")
    assert (lm.name, lm.dtype, lm.n_layers) == (str(written), torch.float32, 4)
    assert_near(logits(lm), logits(original), model_rounding(lm))
    chat = [user("hi there")]
    assert lm.encode_chat(chat) == original.encode_chat(chat)
    assert 1 in lm.eos_ids
    kept = sources.converted(sources.sha256(written))
    assert left(home) == [kept.name]
    assert "_model_name_or_path" not in (kept / "config.json").read_text()
    assert [row.about for row in sources.listed()][-1] == f"converted from {written}"


def test_digits_and_the_line_breaks_before_them_stand_apart(written):
    """As llama.cpp cuts a text for the vocabulary named smollm; GPT-2's own way takes " 12" in one piece."""
    cut = load(str(written), device="cpu").tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in cut("a\n\n12 b")] == ["a", "ĊĊ", "1", "2", "Ġb"]


def test_it_is_converted_once_and_again_only_where_its_content_is_another(written, tmp_path, monkeypatch):
    load(str(written), device="cpu")
    again: list[Path] = []
    monkeypatch.setattr(convert, "convert", lambda file, *_: again.append(file))
    copy = tmp_path / "folder" / "other name.gguf"
    copy.parent.mkdir()
    shutil.copy(written, copy)
    assert find(str(copy.parent)).path == copy
    assert load(str(copy.parent), device="cpu").n_layers == 4
    with copy.open("ab") as opened:
        opened.write(b"\0")
    assert again == []
    with pytest.raises(SettingsError):
        load(str(copy), device="cpu")
    assert again == [copy]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "BF16"])
def test_what_is_quantised_is_kept_in_bfloat16(kind, tmp_path):
    file = gguf_files.write(tmp_path / "small.gguf", kind=GGMLQuantizationType[kind])
    lm, original = load(str(file), device="cpu", dtype="bfloat16"), tiny.shared("llama")
    (kept,) = {path.parent for path in sources.home().rglob("config.json")}
    assert '"dtype": "bfloat16"' in (kept / "config.json").read_text()
    step = {"Q8_0": 1 / 127, "Q4_1": 1 / 15, "BF16": 0.0}[kind] + 2**-8
    for path, parameter in lm.model.named_parameters():
        exact = original.model.get_parameter(path)
        spread = exact.abs().max() * 2
        assert (parameter - exact).abs().max() <= step * spread, path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"template": None}, "has no chat template: choose an instruction-tuned model"),
        ({"parts": 3}, "is one of 3 parts: merge them"),
        ({"architecture": "never-heard-of"}, "is of the architecture never-heard-of, which transformers"),
        ({"vocabulary": "bert"}, "has no vocabulary that transformers can read"),
        ({"without": "blk.1.ffn_up.weight"}, r"lacks 1 of its tensors, model\.layers\.1\.mlp\.up_proj"),
        ({"layers": 40}, "describes a model of .* numbers and holds"),
        ({"extra": {"rope_freqs.weight": np.ones(4, np.float32)}}, "so it would be another model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_one_that_is_not_read_whole_is_one_sentence(options, says, tmp_path, home):
    file = gguf_files.write(tmp_path / "x.gguf", **options)
    with pytest.raises(SettingsError, match=says) as refused:
        load(str(file), device="cpu")
    assert "\n" not in str(refused.value)
    assert left(home) == []


def kind_of(number: int) -> Any:
    """Another number for how the first matrix is stored."""

    def change(content: bytes) -> bytes:
        name = b"token_embd.weight"
        at = content.index(name) + len(name) + 4 + 2 * 8
        return content[:at] + number.to_bytes(4, "little") + content[at + 4 :]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: content[:-1000], "is cut off, damaged, or of an old version"),
        (lambda content: content[:4] + b"\1" + content[5:], "is cut off, damaged, or of an old version"),
        (lambda content: b"GGUF" + bytes(100), "is cut off, damaged, or of an old version"),
        (lambda content: b"\x89PNG" + content[4:], "is no GGUF file, whatever its name"),
        (kind_of(GGMLQuantizationType.Q8_1), "is quantised in a way that cannot be read"),
        (kind_of(250), "is quantised in a way that cannot be read"),
    ],
)
def test_a_damaged_file_is_one_sentence(change, says, broken, home):
    with pytest.raises(SettingsError, match=says) as refused:
        load(broken(change), device="cpu")
    assert "\n" not in str(refused.value)
    assert left(home) == []


def test_what_a_name_may_stand_for(written, tmp_path):
    other = tmp_path / "model.bin"
    shutil.copy(written, other)
    with pytest.raises(SettingsError, match=r"is a GGUF file under another name: rename it to end in \.gguf"):
        find(str(other))
    other.write_bytes(b"text")
    with pytest.raises(SettingsError, match="is no GGUF file, whatever its name"):
        find(str(other))
    with pytest.raises(SettingsError, match=r"There is no file own/model\.gguf"):
        find("own/model.gguf")
    for name in ("a.gguf", "b.GGUF"):
        shutil.copy(written, tmp_path / name)
    with pytest.raises(SettingsError, match=r"holds 2 GGUF files \(a\.gguf, b\.GGUF\): give one of them"):
        find(str(tmp_path))


def test_no_room_is_said_before_anything_is_written(written, home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SettingsError, match=r"0\.0 GiB are free: make room, or set STEER_HEAL_HOME"):
        load(str(written), device="cpu")
    monkeypatch.undo()
    monkeypatch.setattr(convert.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setenv("STEER_HEAL_HOME", str(home))
    with pytest.raises(SettingsError, match=r"GiB of memory and 0\.0 GiB are free"):
        load(str(written), device="cpu")
    assert left(home) == []


def test_a_disk_that_fills_meanwhile_leaves_nothing(written, home, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match=r"The disk of .* is full"):
        load(str(written), device="cpu")
    assert left(home) == []


def test_a_folder_that_cannot_be_written_is_said(written, monkeypatch):
    monkeypatch.setenv("STEER_HEAL_HOME", "/dev/null/models")
    with pytest.raises(SettingsError, match="set STEER_HEAL_HOME to a folder of yours"):
        load(str(written), device="cpu")


def test_one_killed_half_way_leaves_nothing_that_is_opened(written, home, tmp_path, monkeypatch):
    """A kill before the last step leaves what lies there then."""

    def killed(_descriptor: int) -> None:
        shutil.copytree(home / "models", tmp_path / "then")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        load(str(written), device="cpu")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    shutil.copytree(tmp_path / "then", home / "models", dirs_exist_ok=True)
    (half,) = left(home)
    assert half.endswith(".part")
    assert not any(row.about.startswith("converted") for row in sources.listed())
    lm = load(str(written), device="cpu")
    assert_near(logits(lm), logits(tiny.shared("llama")), model_rounding(lm))
    assert left(home) == [half.removesuffix(".part")]


def changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [changed, lambda file: os.truncate(file, 5000), Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_what_is_damaged_is_converted_again(damage, name, written):
    kept = prepare(find(str(written)))
    damage(kept / name)
    lm = load(str(written), device="cpu")
    assert_near(logits(lm), logits(tiny.shared("llama")), model_rounding(lm))
    assert sources.amiss(kept) is None


def test_one_of_before_hashes_were_kept_says_what_to_delete(written):
    kept = prepare(find(str(written)))
    (kept / sources.ORIGIN).write_text("{}")
    os.truncate(kept / "model.safetensors", 5000)
    with pytest.raises(
        SettingsError, match=rf"its model\.safetensors is damaged .*: delete {kept}, and it is"
    ):
        load(str(written), device="cpu")


def test_who_comes_second_waits_for_the_first(written, monkeypatch):
    """The first one holds the lock, and lets it go when its folder is there."""
    kept = prepare(find(str(written)))
    aside, lock = kept.rename(kept.with_name("aside")), FileLock(kept.with_suffix(".lock"))
    again: list[Path] = []
    monkeypatch.setattr(convert, "convert", lambda file, *_: again.append(file))
    heard: list[str] = []

    def hear(text: str) -> None:
        heard.append(text)
        if "waiting for another process" in text:
            aside.rename(kept)
            lock.release()

    lock.acquire()
    assert load(str(written), device="cpu", progress=hear).n_layers == 4
    assert again == []
    assert any("waiting for another process" in text for text in heard)
