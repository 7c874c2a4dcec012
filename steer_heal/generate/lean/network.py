"""The blocks of a known architecture as plain functions of tensors, and whether a model is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.activations import GELUTanh
from transformers.models.gemma3 import modeling_gemma3 as gemma3
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from ...models import LanguageModel
from .pointwise import gated_gelu, norm_early, norm_late, norm_late_

Map = Callable[[Tensor], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries (M, H, d), keys and values (N, K, d) of the new tokens to (M, H * d)."""

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


FAMILIES: dict[type[nn.Module], Family] = {
    gemma3.Gemma3ForCausalLM: Family(
        gemma3.Gemma3DecoderLayer, gemma3.Gemma3Attention, gemma3.Gemma3MLP, gemma3.Gemma3RMSNorm,
        gemma3.Gemma3TextScaledWordEmbedding, gemma3.Gemma3TextModel, zero_centred=True,
    ),
    llama.LlamaForCausalLM: Family(
        llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm,
        nn.Embedding, llama.LlamaModel,
    ),
    qwen3.Qwen3ForCausalLM: Family(
        qwen3.Qwen3DecoderLayer, qwen3.Qwen3Attention, qwen3.Qwen3MLP, qwen3.Qwen3RMSNorm,
        nn.Embedding, qwen3.Qwen3Model,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One decoder block: its maps, its attention's window (None: all), its rotary table's name."""

    before_attention: Map
    q: Map
    k: Map
    v: Map
    q_norm: Map
    k_norm: Map
    o: Map
    after_attention: Map
    before_mlp: Map
    gate: Map
    up: Map
    down: Map
    gated: Callable[[Tensor, Tensor], Tensor]
    after_mlp: Map
    window: int | None
    rotary: str
    scale: float

    def forward(
        self, hidden_ND: Tensor, turn: Turn, head_dim: int, attend: Attend, last: Tensor | None = None
    ) -> Tensor:
        """The residual behind the block; only at the rows `last` when given (all rows still give keys)."""
        x_ND = self.before_attention(hidden_ND)
        k_NKd = turn.rotate(self.k_norm(self.k(x_ND).unflatten(-1, (-1, head_dim))))
        v_NKd = self.v(x_ND).unflatten(-1, (-1, head_dim))
        if last is not None:
            x_ND, hidden_ND, turn = x_ND[last], hidden_ND[last], turn.at(last)
        q_MHd = turn.rotate(self.q_norm(self.q(x_ND).unflatten(-1, (-1, head_dim))))
        hidden_ND = self.after_attention(self.o(attend(q_MHd, k_NKd, v_NKd))).add_(hidden_ND)
        x_ND = self.before_mlp(hidden_ND)
        return self.after_mlp(self.down(self.gated(self.gate(x_ND), self.up(x_ND)))).add_(hidden_ND)


@dataclass(frozen=True)
class Turn:
    """Rotary tables of some tokens, (N, 1, d) each; the sine's first half negated."""

    cos_N1d: Tensor
    sin_N1d: Tensor

    def rotate(self, x_NHd: Tensor) -> Tensor:
        """x cos + (x's halves swapped, the new first half negated) sin. Source: Su et al., 2021 (RoPE)."""
        return (x_NHd * self.cos_N1d).addcmul_(x_NHd.roll(x_NHd.shape[-1] // 2, -1), self.sin_N1d)

    def at(self, rows: Tensor) -> Turn:
        return Turn(self.cos_N1d[rows], self.sin_N1d[rows])


class Network:
    """A known model's embedding, blocks and head over its own weights; made anew for every answer."""

    def __init__(self, lm: LanguageModel) -> None:
        """`lm` is one for which `why_not` has nothing to say."""
        model: Any = lm.model
        family = FAMILIES[type(model)]
        text, config = model.model, lm.config
        self.n_kv_heads: int = config.num_key_value_heads
        self.head_dim: int = text.layers[0].self_attn.head_dim
        self.blocks = [_block(block, family, config, layer) for layer, block in enumerate(text.layers)]
        self.windows = {block.window for block in self.blocks}
        self.embed: Map = text.embed_tokens
        self._norm, self._head = _norm(text.norm, family), _linear(model.lm_head)
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        self._rotary, self._by_kind = text.rotary_emb, family.zero_centred

    def turns(self, positions_N: Tensor, like: Tensor) -> dict[str, Turn]:
        """Rotary tables for the positions, by name, in the type of `like`."""
        made = {}
        for name in {block.rotary for block in self.blocks}:
            cos_1Nd, sin_1Nd = self._rotary(like, positions_N[None], *([name] if self._by_kind else []))
            first, second = sin_1Nd[0].chunk(2, dim=-1)
            made[name] = Turn(cos_1Nd[0, :, None], torch.cat((-first, second), dim=-1)[:, None])
        return made

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """The head, over the final norm."""
        logits_NV = self._head(self._norm(hidden_ND))
        return logits_NV if self._cap is None else torch.tanh(logits_NV / self._cap) * self._cap


def why_not(lm: LanguageModel) -> str:
    """Why this model, as it stands, goes through transformers' own forward; empty when it is known."""
    model: Any = lm.model
    family = FAMILIES.get(type(model))
    if family is None:
        known = ", ".join(cls.__name__ for cls in FAMILIES)
        return f"{type(model).__name__} is none of {known}"
    config: Any = lm.config
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {config._attn_implementation}"
    if getattr(config, "use_bidirectional_attention", False) or getattr(
        config, "attn_logit_softcapping", None
    ):
        return "its attention is not plain causal attention"
    if any(kind in ("dynamic", "longrope") for kind in _rope_kinds(config)):
        return "its rotary tables change with the length of the text"
    if model.training or len({parameter.device for parameter in model.parameters()}) > 1:
        return "it is in training, or spread over several devices"
    for module, expected in _expected(model, family):
        if type(module) is not expected:
            return f"it holds a {type(module).__name__} where a {expected.__name__} is expected"
        if _altered(module):
            return f"something is hooked onto its {type(module).__name__}"
    return ""


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
        for part in (*block.children(), *block.self_attn.children()):
            if "Norm" in type(part).__name__:
                yield part, family.norm


def _altered(module: nn.Module) -> bool:
    hooks = [hook for hook in module._forward_hooks.values() if hook.__module__ != _INERT_HOOKS]
    return bool(hooks or module._forward_pre_hooks or "forward" in vars(module))


def _rope_kinds(config: Any) -> Iterator[str]:
    parameters = config.rope_parameters
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for one in nested or [parameters]:
        yield one["rope_type"]


def _block(block: Any, family: Family, config: Any, layer: int) -> Block:
    attention, mlp = block.self_attn, block.mlp
    kind = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    norm, norm_ = partial(_norm, family=family), partial(_norm, family=family, fresh=True)
    inner = hasattr(attention, "q_norm")
    four = family.zero_centred
    return Block(
        before_attention=norm(block.input_layernorm),
        q=_linear(attention.q_proj),
        k=_linear(attention.k_proj),
        v=_linear(attention.v_proj),
        q_norm=norm_(attention.q_norm) if inner else _as_is,
        k_norm=norm_(attention.k_norm) if inner else _as_is,
        o=_linear(attention.o_proj),
        after_attention=norm_(block.post_attention_layernorm) if four else _as_is,
        before_mlp=norm(block.pre_feedforward_layernorm if four else block.post_attention_layernorm),
        gate=_linear(mlp.gate_proj),
        up=_linear(mlp.up_proj),
        down=_linear(mlp.down_proj),
        gated=gated_gelu if isinstance(mlp.act_fn, GELUTanh) else partial(_gated, act=mlp.act_fn),
        after_mlp=norm_(block.post_feedforward_layernorm) if four else _as_is,
        window=config.sliding_window if kind[layer] == "sliding_attention" else None,
        rotary=kind[layer] if four else "",
        scale=attention.scaling,
    )


def _as_is(x: Tensor) -> Tensor:
    return x


def _gated(gate_NF: Tensor, up_NF: Tensor, act: Map) -> Tensor:
    return act(gate_NF).mul_(up_NF)


def _linear(module: nn.Module) -> Map:
    """The module itself where it is more than a plain linear layer: LoRA, a quantised one, a hooked one."""
    if type(module) is not nn.Linear or _altered(module):
        return module
    return partial(linear, weight=module.weight, bias=module.bias)


def _norm(module: Any, family: Family, fresh: bool = False) -> Map:
    """RMSNorm in float32 (Zhang and Sennrich, 2019), rounded where the architecture rounds.

    `fresh`: what it is given was made for it alone, and may be overwritten."""
    if family.zero_centred:
        weight_D = 1.0 + module.weight.float()
        return partial(norm_late_ if fresh else norm_late, weight_D=weight_D, eps=module.eps)
    return partial(norm_early, weight_D=module.weight, eps=module.variance_epsilon)
