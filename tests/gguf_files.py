"""Tiny GGUF files, written with llama.cpp's own package: a random llama, its vocabulary, its template."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize

from tests import tiny

F32 = GGMLQuantizationType.F32


def write(
    file: Path,
    *,
    kind: GGMLQuantizationType = F32,
    template: str | None = tiny.TEMPLATE,
    architecture: str = "llama",
    vocabulary: str = "gpt2",
    without: str = "",
    extra: dict[str, np.ndarray] | None = None,
    parts: int = 1,
    layers: int | None = None,
) -> Path:
    """The tiny llama as a GGUF file. `kind`: how its matrices are stored; `without`: a tensor left out;
    `layers`: how many it says it has, its own when none."""
    lm = tiny.shared("llama")
    writer = GGUFWriter(file, architecture)
    _describe(writer, lm.config, layers or lm.n_layers)
    _vocabulary(writer, vocabulary, template)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    for name, values in {**_tensors(lm), **(extra or {})}.items():
        stored = kind if values.ndim > 1 else F32
        if name != without:
            writer.add_tensor(name, quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _describe(writer: GGUFWriter, config: Any, layers: int) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)


def _vocabulary(writer: GGUFWriter, kind: str, template: str | None) -> None:
    words = tiny.tokenizer()
    model = json.loads(words.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if token in tiny.SPECIAL else TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    for name in ("pad", "eos", "bos", "unk"):
        getattr(writer, f"add_{name}_token_id")(tiny.SPECIAL.index(f"<{name}>"))
    if template is not None:
        writer.add_chat_template(template)


def _tensors(lm: Any) -> dict[str, np.ndarray]:
    """By llama.cpp's names; queries and keys in its order of rotary pairs (convert_hf_to_gguf.py)."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, lm.n_layers)
    found = {}
    for path, parameter in lm.model.named_parameters():
        name, values = names.get_name(path.removesuffix(".weight")), parameter.numpy()
        heads = {"q_proj": lm.config.num_attention_heads, "k_proj": lm.config.num_key_value_heads}.get(
            path.split(".")[-2]
        )
        if heads is not None:
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        found[f"{name}.weight"] = np.ascontiguousarray(values)
    return found
