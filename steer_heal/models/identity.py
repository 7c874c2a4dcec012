"""What decides what a model says, as hashes: nothing cached is found again once one of them has changed."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from steer_heal.models.placement import tensors

_CHUNK = 1 << 18
"""Numbers that are hashed at once."""
_ODD = torch.frombuffer(bytearray(hashlib.shake_256(b"weights").digest(8 * _CHUNK)), dtype=torch.int64) | 1
_PASSING = ("_name_or_path", "transformers_version")
"""What a config says of where it lay and who wrote it."""


def digest(*parts: Any) -> str:
    """A short hash of values that JSON holds."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def tensor_hash(tensor: Tensor) -> bytes:
    """A hash of the values in their order; bfloat16, float16 and float32 of the same values have the same.

    Of each chunk the 64-bit words, as float32 has them, are multiplied by odd numbers drawn at random once
    and for all, and summed modulo 2^64: one changed word always shows, several in all but 2^-64 of cases.
    """
    sums = [torch.zeros((), dtype=torch.int64, device=tensor.device)]
    odd = _ODD.to(tensor.device)
    for chunk in tensor.detach().reshape(-1).split(_CHUNK):
        exact = torch.float64 if chunk.dtype in (torch.float64, torch.int64, torch.int32) else torch.float32
        values = chunk.to(exact)
        if values.dtype == torch.float32 and (len(values) % 2 or values.storage_offset() % 2):
            values = pad(values, (0, len(values) % 2))
        words = values.view(torch.int64)
        some = odd[: len(words)]
        sums.append(torch.dot(words, some) if words.is_cpu else (words * some).sum())
    return torch.stack(sums).cpu().numpy().tobytes()


def weights_hash(model: PreTrainedModel) -> str:
    """Of every parameter and saved buffer, with its name and shape: one hash for a checkpoint, loaded as it
    is or in a wider number format."""
    found = hashlib.sha256()
    for path, tensor in tensors(model):
        found.update(f"{path}{tuple(tensor.shape)}".encode())
        found.update(tensor_hash(tensor))
    return found.hexdigest()[:24]


def touched(model: nn.Module) -> int:
    """Another number once torch has changed a parameter in place, or another has taken its place."""
    return hash(tuple((id(one), one._version, one.data_ptr()) for one in model.parameters()))


def config_values(config: PreTrainedConfig) -> Any:
    """All that the config holds, but for where it lay and who wrote it."""
    return _lasting(json.loads(config.to_json_string(use_diff=False)))


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in _PASSING}
    return value


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of how text becomes token ids, all but the chat template."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest(type(tokenizer).__name__, rules, special)
