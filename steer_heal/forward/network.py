"""The blocks of a known architecture as plain functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm
from transformers.activations import GELUTanh

from steer_heal.forward.known import FAMILIES, Family, altered
from steer_heal.forward.packed import PACKED_ROWS, packed
from steer_heal.forward.pointwise import gated_gelu
from steer_heal.models import LanguageModel, without_gaps

T = TypeVar("T")
Map = Callable[[Tensor], Tensor]
Maps = Callable[[Tensor], Sequence[Tensor]]
"""Several maps of the same tokens."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries (M, H, d), keys and values (N, K, d) of the new tokens to (M, H * d)."""

_TURNED = range(8, 49)
"""So many tokens times a weight that lies row by row are faster as the weight times the tokens, in float32 on
a CPU (docs/reports/smollm2.md)."""
PACKED_BYTES = 2 << 30
"""Copies of a model's weights that are packed for few tokens take no more than this, or are not made."""


@dataclass(frozen=True)
class Block:
    """One decoder block: its maps, its attention's window (None: all), its rotary table's name."""

    before_attention: Map
    qkv: Maps
    q_norm: Map
    k_norm: Map
    o: Map
    after_attention: Map
    before_mlp: Map
    gate_up: Maps
    down: Map
    gated: Callable[[Tensor, Tensor], Tensor]
    after_mlp: Map
    window: int | None
    rotary: str
    scale: float

    def forward(
        self, hidden_ND: Tensor, table: RotaryTable, head_dim: int, attend: Attend, last: Tensor | None = None
    ) -> Tensor:
        """The residual behind the block; only at the rows `last` when given (all rows still give keys)."""
        made = self.qkv(self.before_attention(hidden_ND))
        q_MHd, k_NKd, v_NKd = (x.unflatten(-1, (-1, head_dim)) for x in made)
        k_NKd = table.rotate(self.k_norm(k_NKd))
        if last is not None:
            q_MHd, hidden_ND, table = q_MHd[last], hidden_ND[last], table.at(last)
        q_MHd = table.rotate(self.q_norm(q_MHd))
        hidden_ND = self.after_attention(self.o(attend(q_MHd, k_NKd, v_NKd))).add_(hidden_ND)
        mlp_ND = self.down(self.gated(*self.gate_up(self.before_mlp(hidden_ND))))
        return self.after_mlp(mlp_ND).add_(hidden_ND)


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of some tokens' places, (N, 1, d) each; the sine's first half negated."""

    cos_N1d: Tensor
    sin_N1d: Tensor

    def rotate(self, x_NHd: Tensor) -> Tensor:
        """x cos + (x's halves swapped, the new first half negated) sin. Source: Su et al., 2021 (RoPE)."""
        return (x_NHd * self.cos_N1d).addcmul_(x_NHd.roll(x_NHd.shape[-1] // 2, -1), self.sin_N1d)

    def at(self, rows: Tensor) -> RotaryTable:
        return RotaryTable(self.cos_N1d[rows], self.sin_N1d[rows])


class Network:
    """A known model's embedding, blocks and head over its own weights; made anew for every answer."""

    def __init__(self, lm: LanguageModel) -> None:
        """`lm` is one for which `is_known` is true."""
        model: Any = lm.model
        family = FAMILIES[type(model)]
        text, config = model.model, lm.config
        self.head_dim: int = text.layers[0].self_attn.head_dim
        packed_rows = _packed_rows(model)
        self.blocks = [
            _block(block, family, config, layer, packed_rows) for layer, block in enumerate(text.layers)
        ]
        self.embed: Map = text.embed_tokens
        self._norm, self._head = _norm(text.norm, family), _head(model.lm_head, packed_rows)
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        self._rotary, self._by_kind = text.rotary_emb, family.zero_centred

    def rotary(self, n_tokens: int, like: Tensor) -> dict[str, RotaryTable]:
        """Rotary tables for the first places, by name, in the type of `like`."""
        made, places_1N = {}, torch.arange(n_tokens, device=like.device)[None]
        for name in {block.rotary for block in self.blocks}:
            cos_1Nd, sin_1Nd = self._rotary(like, places_1N, *([name] if self._by_kind else []))
            first, second = sin_1Nd[0].chunk(2, dim=-1)
            made[name] = RotaryTable(cos_1Nd[0, :, None], torch.cat((-first, second), dim=-1)[:, None])
        return made

    def through(
        self,
        hidden_ND: Tensor,
        tables: dict[str, RotaryTable],
        layers: Iterable[int],
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        *,
        ends_M: Tensor | None = None,
        behind: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The residual of N tokens behind some blocks; behind the last one of the rows `ends_M` alone.

        `tables`: the tokens' own rotary tables. `attend`: told the layer, for only it knows whose the tokens
        are. `behind`: what becomes of the residual behind a layer, as steering has it.
        """
        for layer in layers:
            block, ends = self.blocks[layer], ends_M if layer == len(self.blocks) - 1 else None
            table = tables[block.rotary]
            hidden_ND = block.forward(hidden_ND, table, self.head_dim, partial(attend, layer), ends)
            if behind is not None:
                hidden_ND = behind(layer, hidden_ND)
        return hidden_ND

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """The head, over the final norm."""
        logits_NV = self._head(self._norm(hidden_ND))
        return logits_NV if self._cap is None else torch.tanh(logits_NV / self._cap) * self._cap


def _block(block: Any, family: Family, config: Any, layer: int, packed_rows: range) -> Block:
    attention, mlp = block.self_attn, block.mlp
    everywhere = "sliding_attention" if family.windowed and config.sliding_window else "full_attention"
    kind = (getattr(config, "layer_types", None) or [everywhere] * config.num_hidden_layers)[layer]
    norm = partial(_norm, family=family)
    inner = hasattr(attention, "q_norm")
    four = family.zero_centred
    return Block(
        before_attention=norm(block.input_layernorm),
        qkv=_together(attention.q_proj, attention.k_proj, attention.v_proj, packed_rows=packed_rows),
        q_norm=norm(attention.q_norm) if inner else _as_is,
        k_norm=norm(attention.k_norm) if inner else _as_is,
        o=_linear(attention.o_proj, packed_rows),
        after_attention=norm(block.post_attention_layernorm) if four else _as_is,
        before_mlp=norm(block.pre_feedforward_layernorm if four else block.post_attention_layernorm),
        gate_up=_together(mlp.gate_proj, mlp.up_proj, packed_rows=packed_rows),
        down=_linear(mlp.down_proj, packed_rows),
        gated=gated_gelu if isinstance(mlp.act_fn, GELUTanh) else partial(_gated, act=mlp.act_fn),
        after_mlp=norm(block.post_feedforward_layernorm) if four else _as_is,
        window=config.sliding_window if kind == "sliding_attention" else None,
        rotary=kind if four else "",
        scale=attention.scaling,
    )


def _as_is(x: Tensor) -> Tensor:
    return x


def _gated(gate_NF: Tensor, up_NF: Tensor, act: Map) -> Tensor:
    return act(gate_NF).mul_(up_NF)


def _packed_rows(model: Any) -> range:
    """For how many tokens the model's weights are packed: none where their copies would take too much."""
    weights = [module.weight for module in model.modules() if type(module) is nn.Linear]
    fits = sum(weight.numel() * weight.element_size() for weight in weights) <= PACKED_BYTES
    return PACKED_ROWS.get(model.dtype, range(0)) if fits else range(0)


def _linear(module: nn.Module, packed_rows: range = range(0)) -> Map:
    """The module itself where it is more than a plain linear layer: LoRA, a quantised one, a hooked one."""
    if type(module) is not nn.Linear or altered(module):
        return module
    plain = partial(linear, weight=module.weight, bias=module.bias)
    return _by_number(plain, packed_rows, partial(packed, [module.weight])) if _packs(module) else plain


def _together(*modules: Any, packed_rows: range) -> Maps:
    """Linear layers of the same tokens, as one product where the tokens are few."""
    maps = [_linear(module) for module in modules]

    def apart(x_ND: Tensor) -> Sequence[Tensor]:
        return [one(x_ND) for one in maps]

    if not all(map(_packs, modules)):
        return apart
    weights = [module.weight for module in modules]
    sizes = [len(weight) for weight in weights]

    def joined() -> Maps:
        product = packed(weights)
        return lambda x_ND: product(x_ND).split_with_sizes(sizes, -1)

    return _by_number(apart, packed_rows, joined)


def _by_number(
    plain: Callable[[Tensor], T], numbers: range, make: Callable[[], Callable[[Tensor], T]]
) -> Any:
    """`plain`, or for so many tokens what is made when they first come."""
    made = cache(make)

    def chosen(x_ND: Tensor) -> T:
        return made()(x_ND) if x_ND.dim() == 2 and len(x_ND) in numbers else plain(x_ND)

    return chosen


def _packs(module: Any, but: Any = None) -> bool:
    """Whether it is a plain linear layer on a CPU whose type is packed, with no hook other than `but`."""
    if type(module) is not nn.Linear or module.bias is not None or altered(module, but):
        return False
    return module.weight.device.type == "cpu" and module.weight.dtype in PACKED_ROWS


def _head(module: Any, packed_rows: range) -> Map:
    """The same for the output layer, whose weight lies as the embedding reads it where the two share it."""
    plain, weight = _linear(module), module.weight
    if not _packs(module, but=without_gaps):
        return plain

    def turned(hidden_ND: Tensor) -> Tensor:
        return (weight @ hidden_ND.T).T.contiguous()

    if weight.is_contiguous() and weight.dtype == torch.float32:
        plain = _by_number(plain, _TURNED, lambda: turned)
    return _by_number(plain, packed_rows, partial(packed, [weight]))


def _norm(module: Any, family: Family) -> Map:
    """RMSNorm in float32 (Zhang and Sennrich, 2019): Gemma's is rounded after its product with the weight,
    Llama's before."""
    shape = module.weight.shape
    if family.zero_centred:
        weight_D = 1.0 + module.weight.float()
        return lambda x: rms_norm(x.float(), shape, weight_D, module.eps).to(x.dtype)
    return lambda x: module.weight * rms_norm(x.float(), shape, None, module.variance_epsilon).to(x.dtype)
