"""A GGUF file as a folder that transformers opens: converted once, kept by the file's content."""

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout
from gguf import GGMLQuantizationType, GGUFReader
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.integrations.gguf import read_gguf_metadata

from steer_heal import sources
from steer_heal.config import SettingsError, first_line, one_sentence
from steer_heal.models.files import GIB, SPARE, check_whole

Say = Callable[[str], None]
SMALL_FILES = 2**25
"""Bytes of a converted model besides its weights: the tokenizer, most of all."""
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
"""Vocabularies that cut every digit off what stands around it, which transformers does not know. Source:
LLAMA_VOCAB_PRE_TYPE_SMOLLM in llama.cpp."""


def converted(file: Path, name: str, say: Say) -> Path:
    """The folder of the converted file, made first where it is not here yet. Errors: `SettingsError`, and
    then nothing of it is left."""
    say(f"reading {file.name}")
    with only_one(sources.sha256(file), say) as folder:
        if sources.amiss(folder):
            convert(file, folder, name, say)
    return folder


@contextmanager
def only_one(gguf_sha256: str, say: Say) -> Iterator[Path]:
    """The folder for the converted file, which this process alone may make meanwhile; others wait. One that
    is damaged is made anew, and stays until then."""
    folder = sources.converted(gguf_sha256)
    if not sources.amiss(folder):
        yield folder
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("waiting for another process that is preparing it")
            lock.acquire()
    except OSError as error:
        raise SettingsError(
            f"Cannot write into {folder.parent} ({error.strerror}): set STEER_HEAL_HOME to a folder of yours."
        ) from error
    try:
        yield folder
    finally:
        lock.release()


def check_room(what: str, n_bytes: int) -> None:
    """Errors: `SettingsError` when so much does not fit on the disk where models are kept."""
    free = shutil.disk_usage(sources.home()).free
    if n_bytes > free:
        raise SettingsError(
            f"{what} needs {n_bytes / GIB:.1f} GiB in {sources.home()} and {free / GIB:.1f} GiB are free: "
            "make room, or set STEER_HEAL_HOME to a folder on another disk."
        )


def convert(file: Path, folder: Path, name: str, say: Say) -> None:
    """Write the GGUF file's model and tokenizer into `folder`, which appears only when all is written.

    Weights are kept in float32 where all of the file's are, else in bfloat16. Errors: `SettingsError`.
    """
    metadata = _metadata(file, name)
    part = folder.with_suffix(".part")
    try:
        with one_sentence(lambda error: _explain(name, metadata, error)):
            _write(file, part, name, metadata, say)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        gc.collect()


def _write(file: Path, part: Path, name: str, metadata: dict[str, Any], say: Say) -> None:
    """The model, its tokenizer and where they come from, all on the disk when this returns."""
    shutil.rmtree(part, ignore_errors=True)
    dtype, n_elements = _check_tensors(file, name)
    alone = part / "alone"  # transformers would also read what else lies beside the file
    alone.mkdir(parents=True)
    (alone / "model.gguf").symlink_to(file)
    say("converting: reading the vocabulary")
    config = AutoConfig.from_pretrained(alone, gguf_file="model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
    say("converting: reading the weights")
    model = _whole_model(alone, config, dtype, name, n_elements)
    shutil.rmtree(alone)
    if metadata.get("tokenizer.ggml.pre") in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    say("converting: writing it")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    hashes = {written.name: sources.sha256(written) for written in part.iterdir()}
    (part / sources.ORIGIN).write_text(json.dumps({"file": str(file), "sha256": hashes}), encoding="utf-8")
    for written in part.iterdir():
        with written.open("rb") as opened:
            os.fsync(opened.fileno())


def _metadata(file: Path, name: str) -> dict[str, Any]:
    """What the file says of itself. Errors: `SettingsError` when it cannot be read or is no chat model."""
    with one_sentence(lambda _error: _damaged(name)):
        metadata, _ = read_gguf_metadata(str(file))
    if metadata.get("split.count", 1) > 1:
        raise SettingsError(
            f"{name} is one of {metadata['split.count']} parts: merge them with llama.cpp's "
            "`llama-gguf-split --merge`."
        )
    if "tokenizer.ggml.tokens" in metadata and not metadata.get("tokenizer.chat_template"):
        raise SettingsError(f"{name} has no chat template: choose an instruction-tuned model.")
    return metadata


def _check_tensors(file: Path, name: str) -> tuple[torch.dtype, int]:
    """The dtype in which the file's tensors are kept, and how many numbers they hold. Errors: `SettingsError`
    when the file is cut off, or there is no room for them on the disk or in memory."""
    unknown_kind = GGMLQuantizationType.__name__
    with one_sentence(lambda error: _quantised(name) if unknown_kind in str(error) else _damaged(name)):
        tensors = GGUFReader(file).tensors
    exact = all(tensor.tensor_type == GGMLQuantizationType.F32 for tensor in tensors)
    dtype = torch.float32 if exact else torch.bfloat16
    n_elements = sum(tensor.n_elements for tensor in tensors)
    n_bytes = n_elements * dtype.itemsize
    check_room(f"Converting {name}", n_bytes + SMALL_FILES)
    wanted, free = int(n_bytes * (2 + SPARE)), psutil.virtual_memory().available
    if wanted > free:
        raise SettingsError(
            f"Converting {name} needs about {wanted / GIB:.1f} GiB of memory and {free / GIB:.1f} GiB are "
            "free: close other programs, or choose a smaller model."
        )
    return dtype, n_elements


def _whole_model(
    folder: Path, config: Any, dtype: torch.dtype, name: str, n_elements: int
) -> PreTrainedModel:
    """The model of `model.gguf` as one that can be saved: what transformers reads from a GGUF counts as
    quantised. Errors: `SettingsError` when the file describes a far larger model, or when only a part of its
    numbers are read."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if (described := _count(model)) > 2 * n_elements:
        raise SettingsError(
            f"{name} describes a model of {described:,} numbers and holds {n_elements:,}: get the file again."
        )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file="model.gguf",
        config=config,
        dtype=dtype,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    read, found = loaded
    check_whole(name, found)
    vars(config).pop("_model_name_or_path", None)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    if (taken := _count(model)) != n_elements:
        raise SettingsError(
            f"transformers takes {taken:,} of the {n_elements:,} numbers that {name} holds, so it would be "
            "another model: give the folder or the hub id of the model itself."
        )
    return model


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _damaged(name: str) -> str:
    return f"{name} is cut off, damaged, or of an old version of GGUF: get the file again."


def _quantised(name: str) -> str:
    return f"{name} is quantised in a way that cannot be read here: get it as Q4_K_M, Q8_0 or F16."


def _explain(name: str, metadata: dict[str, Any], error: BaseException) -> str:
    """One sentence on why the file cannot be converted and what to do."""
    text = first_line(error)
    if isinstance(error, NotImplementedError) or "ggml type" in text:
        return _quantised(name)
    if "No space left" in text or "os error 28" in text:
        return f"The disk of {sources.home()} is full: free some, or set STEER_HEAL_HOME to another folder."
    if "Cannot build a tokenizer" in text or "tokenizer.ggml.tokens" not in metadata:
        return f"{name} has no vocabulary that transformers can read: give the folder of the model itself."
    if "is not supported yet" in text or "Unrecognized configuration class" in text:
        return (
            f"{name} is of the architecture {metadata['general.architecture']}, which transformers cannot "
            "read from GGUF as a language model: give the folder or the hub id of the model itself."
        )
    return f"{name} could not be converted ({text}): give the folder or the hub id of the model itself."
