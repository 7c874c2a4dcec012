"""Writes the trained model as a folder that `from_pretrained` loads."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

SAMPLING = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """bf16 weights, configuration, sampling settings, tokenizer and chat template."""
    out.mkdir(parents=True, exist_ok=True)
    small = copy.deepcopy(model).bfloat16().eval()
    small.config.dtype = torch.bfloat16
    small.generation_config = GenerationConfig(
        do_sample=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        pad_token_id=tokenizer.pad_token_id,
        **SAMPLING,
    )
    small.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # safetensors writes 0600, which another account could not read
    (out / "model.safetensors").chmod(0o644)
    size = (out / "model.safetensors").stat().st_size
    print(json.dumps({"out": str(out), "bytes": size, "parameters": small.num_parameters()}), flush=True)
