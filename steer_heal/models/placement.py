"""Where a model goes and where it is: one device, several, or weights on disk until they are used."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from steer_heal.config import SettingsError
from steer_heal.models.files import free as room_on
from steer_heal.models.files import needed
from steer_heal.sources import DEMO_FOLDER

BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Instructions of x86 and ARM processors that multiply bfloat16."""
AMPLE = 0.5
"""Share of the free memory that weights may take in a wider format than they are stored in."""


def best_device(folder: Path, dtype: torch.dtype | str) -> str:
    """The accelerator; "auto" where the weights fit on several together but not on one; else the CPU."""
    if torch.cuda.is_available():
        alone = torch.cuda.device_count() == 1 or needed(folder, dtype) <= room_on("cuda:0")
        return "cuda" if alone else "auto"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def chosen_dtype(
    asked: str | torch.dtype | None, config: PreTrainedConfig, folder: Path, device: str | None
) -> torch.dtype | str:
    """What the weights in `folder` are loaded as; see `load`. Errors: `SettingsError` for an unknown name."""
    if isinstance(asked, torch.dtype):
        return asked
    if asked is not None:
        named = getattr(torch, asked, None)
        if not isinstance(named, torch.dtype) or not named.is_floating_point:
            raise SettingsError(f"Unknown dtype {asked!r}: give float32, bfloat16 or float16.")
        return named
    stored = getattr(config.get_text_config(decoder=True), "dtype", None) or getattr(config, "dtype", None)
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    if device == "cpu" or (device is None and not accelerated):
        halved = stored == torch.bfloat16 and _float32_is_faster(folder)
        return torch.float32 if folder == DEMO_FOLDER or stored == torch.float16 or halved else "auto"
    return torch.bfloat16 if stored in (None, torch.float32) else "auto"


def _float32_is_faster(folder: Path) -> bool:
    """Whether this processor only imitates bfloat16, and float32 weights leave half of the memory free."""
    able = torch.cpu.get_capabilities()
    ample = needed(folder, torch.float32) <= AMPLE * room_on("cpu")
    return ample and not any(able.get(instructions) for instructions in BFLOAT16)


def runs_on(module: nn.Module) -> torch.device:
    """The device a module computes on, also where accelerate brings its weights there only for that."""
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        place = getattr(one, "execution_device", None)
        if place is not None:
            return torch.device(place)
    return next(module.parameters()).device


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Each parameter and saved buffer once, with its values, also one that is offloaded."""
    tied = model.all_tied_weights_keys
    for prefix, module in model.named_modules():
        with align_module_device(module):
            passing = module._non_persistent_buffers_set
            buffers = [item for item in module.named_buffers(recurse=False) if item[0] not in passing]
            for name, tensor in (*module.named_parameters(recurse=False), *buffers):
                path = f"{prefix}.{name}" if prefix else name
                if path not in tied:
                    yield path, tensor


def spread(model: nn.Module) -> bool:
    """Whether accelerate moves what flows through the model: it spans devices, or is partly offloaded."""
    return len({parameter.device for parameter in model.parameters()}) > 1 or any(
        parameter.is_meta for parameter in model.parameters()
    )


def free() -> None:
    """Give back the memory of models that nothing refers to any more, on accelerators too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def lay_out(model: PreTrainedModel) -> None:
    """Lays the weights of linear layers out in memory for products of few rows, in place; no value changes.

    transformers keeps a weight (out, in) row by row. On a CPU in float32 a product with 9 to 48 rows, which
    decoding makes, takes two to four times as long that way as with the weight column by column, and one with
    many rows as long (docs/reports/smollm2.md). A weight that is shared with the embedding, which is read row
    by row, stays as it is.
    """
    shared = model.get_input_embeddings().weight
    for module in model.modules():
        if type(module) is nn.Linear and module.weight is not shared:
            weight = module.weight
            if weight.device.type == "cpu" and weight.dtype == torch.float32:
                weight.data = weight.data.t().contiguous().t()
