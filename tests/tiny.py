"""Tiny random-weight models and an in-memory byte-level tokenizer: no download, milliseconds each."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steer_heal.config import FOUNDATIONS
from steer_heal.data import own_traits
from steer_heal.models import LanguageModel
from steer_heal.vectors.vector import SteeringVector

Arch = Literal["gemma3", "llama", "qwen3"]
ARCHS: tuple[Arch, ...] = ("gemma3", "llama", "qwen3")
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
TEMPLATE = (
    "{{ bos_token }}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set prefix = messages[0]['content'] + '\n\n' -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set prefix = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\n' }}"
    "{{ (prefix if loop.first else '') + turn['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level BPE: 256 bytes, the seven foundations as single tokens after a quote, Gemma's turn tags."""
    vocab: dict[str, int] = {}
    for token in (*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())):
        vocab[token] = len(vocab)
    merges: list[tuple[str, str]] = []
    for word in FOUNDATIONS:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
    )
    made.chat_template = template
    return made


def shape_of(vocab_size: int, n_layers: int = 4) -> dict[str, Any]:
    """The settings of a tiny network, as most architectures call them."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }


def network(arch: Arch, vocab_size: int, *, n_layers: int = 4, seed: int = 0) -> PreTrainedModel:
    """A random-weight causal language model; Gemma3 mixes sliding (window 8) and full attention."""
    shape = shape_of(vocab_size, n_layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if arch == "gemma3":
            kinds = ["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(n_layers)]
            config = Gemma3TextConfig(**shape, sliding_window=8, layer_types=kinds, query_pre_attn_scalar=8)
            return Gemma3ForCausalLM(config)
        if arch == "llama":
            return LlamaForCausalLM(LlamaConfig(**shape))
        return Qwen3ForCausalLM(Qwen3Config(**shape))


def language_model(arch: Arch = "gemma3", *, n_layers: int = 4, seed: int = 0) -> LanguageModel:
    """A fresh tiny model that a test may change."""
    words = tokenizer()
    model = network(arch, len(words), n_layers=n_layers, seed=seed)
    model.generation_config = GenerationConfig(
        eos_token_id=[1, SPECIAL.index("<end_of_turn>")], pad_token_id=0, bos_token_id=2, do_sample=True
    )
    return LanguageModel(name=f"tiny-{arch}", model=model, tokenizer=words)


def endless() -> LanguageModel:
    """One whose answers are as long as asked for on any CPU: no token ends them."""
    made = language_model()
    made.eos_ids = frozenset()
    return made


@cache
def shared(arch: Arch = "gemma3") -> LanguageModel:
    """One tiny model a process, for tests that only read it."""
    return language_model(arch)


def own_trait(name: str = "formal", plus: str = "formal", minus: str = "casual", **more: Any) -> None:
    """Write a trait of one's own that is measured by two short pairs of statements."""
    statements = [[f"{how} {pole}." for pole in (plus, minus)] for how in ("Be", "How")]
    own_traits.write(own_traits.of_poles(name, plus, minus, **{"statements": statements, **more}))


def save(lm: LanguageModel, folder: Path) -> str:
    """The folder's name, with the model and its tokenizer in it, as people bring one."""
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


def logits(lm: LanguageModel, ids: tuple[int, ...] = (2, 4, 9, 30)) -> Tensor:
    """What transformers' own pass gives after every token of one text, (1, T, V)."""
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids])).logits


def directions(lm: LanguageModel, seed: int = 0) -> Tensor:
    """A random unit direction a layer, (L, D)."""
    made = torch.randn(lm.n_layers, lm.width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)


def vector(lm: LanguageModel, seed: int = 0) -> SteeringVector:
    """The same as a vector, whose lengths are all 1."""
    ones_L = torch.ones(lm.n_layers)
    return SteeringVector(directions(lm, seed), ones_L, ones_L)


def gemma_shape(dtype: torch.dtype = torch.bfloat16, n_layers: int = 26) -> LanguageModel:
    """Random weights in gemma-3-1b-it's shape, or with fewer layers."""
    config = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        max_position_embeddings=32_768,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, bos_token_id=2)
    return LanguageModel("gemma-3-1b shape", model, tokenizer())
