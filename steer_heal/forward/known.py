"""The architectures that our own blocks know, and whether a model is one of them, as it stands."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.models.gemma3 import modeling_gemma3 as gemma3
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from steer_heal.models import LanguageModel

_INERT_HOOKS = "transformers.utils.output_capturing"
"""What `output_hidden_states=True` leaves behind: does nothing unless a call asks for it again."""


@dataclass(frozen=True)
class Family:
    """The classes an architecture is made of."""

    block: type[nn.Module]
    attention: type[nn.Module]
    mlp: type[nn.Module]
    norm: type[nn.Module]
    embedding: type[nn.Module]
    text: type[nn.Module]
    zero_centred: bool = False
    """Norms multiply by 1 + weight, and the residual is normed behind attention and MLP too."""
    windowed: bool = False
    """Every block's attention has the config's window, where it names one."""


FAMILIES: dict[type[nn.Module], Family] = {
    gemma3.Gemma3ForCausalLM: Family(
        gemma3.Gemma3DecoderLayer, gemma3.Gemma3Attention, gemma3.Gemma3MLP, gemma3.Gemma3RMSNorm,
        gemma3.Gemma3TextScaledWordEmbedding, gemma3.Gemma3TextModel, zero_centred=True,
    ),
    llama.LlamaForCausalLM: Family(
        llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm,
        nn.Embedding, llama.LlamaModel,
    ),
    mistral.MistralForCausalLM: Family(
        mistral.MistralDecoderLayer, mistral.MistralAttention, mistral.MistralMLP, mistral.MistralRMSNorm,
        nn.Embedding, mistral.MistralModel, windowed=True,
    ),
    qwen2.Qwen2ForCausalLM: Family(
        qwen2.Qwen2DecoderLayer, qwen2.Qwen2Attention, qwen2.Qwen2MLP, qwen2.Qwen2RMSNorm,
        nn.Embedding, qwen2.Qwen2Model,
    ),
    qwen3.Qwen3ForCausalLM: Family(
        qwen3.Qwen3DecoderLayer, qwen3.Qwen3Attention, qwen3.Qwen3MLP, qwen3.Qwen3RMSNorm,
        nn.Embedding, qwen3.Qwen3Model,
    ),
}  # fmt: skip


def is_known(lm: LanguageModel) -> bool:
    """Whether our own blocks compute the model, as it stands: one of these architectures, with plain causal
    attention, rotary tables of one length, on one device, not in training, and with nothing replaced or
    hooked on. Any other goes through transformers' own forward."""
    model: Any = lm.model
    config: Any = lm.config
    family = FAMILIES.get(type(model))
    if family is None or model.training or len({one.device for one in model.parameters()}) > 1:
        return False
    other_attention = (
        config._attn_implementation not in ("sdpa", "eager")
        or getattr(config, "use_bidirectional_attention", False)
        or getattr(config, "attn_logit_softcapping", None)
    )
    if other_attention or any(kind in ("dynamic", "longrope") for kind in rope_kinds(config)):
        return False
    expected = _expected(model, family)
    return all(type(module) is kind and not altered(module) for module, kind in expected)


def _expected(model: Any, family: Family) -> Iterator[tuple[nn.Module, type[nn.Module]]]:
    """The modules that are computed here instead of being called, and what they have to be."""
    text = model.model
    yield model, type(model)
    yield text, family.text
    yield text.embed_tokens, family.embedding
    yield text.norm, family.norm
    for block in text.layers:
        yield block, family.block
        yield block.self_attn, family.attention
        yield block.mlp, family.mlp
        for name, part in (*block.named_children(), *block.self_attn.named_children()):
            if "norm" in name:
                yield part, family.norm


def altered(module: nn.Module, but: Any = None) -> bool:
    """Whether a call of the module does more than its class says, and than a hook `but` before it."""
    hooks = [hook for hook in module._forward_hooks.values() if hook.__module__ != _INERT_HOOKS]
    before = [hook for hook in module._forward_pre_hooks.values() if hook is not but]
    return bool(hooks or before or "forward" in vars(module))


def rope_kinds(config: Any) -> Iterator[str]:
    """How the model's rotary tables are made, one kind for each that it has."""
    parameters = config.rope_parameters
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for one in nested or [parameters]:
        yield one["rope_type"]
