"""Reading prompts through a `Network`: rows of tokens through some of its blocks, as deep as is needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from steer_heal.generate.lean.attention import HIDDEN, attend, causal
from steer_heal.generate.lean.keys import Pair
from steer_heal.generate.lean.network import Network, Turn
from steer_heal.vectors.steering import Steering

_CHUNK_TOKENS = 1024
"""How many tokens go through the blocks at once: more would need more memory, and more padding."""


@dataclass(frozen=True, eq=False)
class Read:
    """One prompt read without steering, as deep as was asked: per layer keys and values, (K, T, d), and the
    residual behind the blocks that were asked for, (T, D), or (1, D) behind the last one."""

    pairs: dict[int, tuple[Tensor, Tensor]]
    residuals: dict[int, Tensor]

    @property
    def layers(self) -> Collection[int]:
        return self.residuals.keys()


@dataclass(frozen=True, eq=False)
class Passed:
    """Rows read from one block on: keys and values (N, K, T, d) by layer, residuals by layer."""

    pairs: dict[int, Pair]
    residuals: dict[int, Tensor]


def read(
    network: Network,
    prompts: Sequence[Sequence[int]],
    depth: int,
    wanted: Collection[int],
    device: torch.device,
) -> list[Read]:
    """Each prompt by itself, through the first `depth` blocks."""
    lengths = [len(prompt) for prompt in prompts]
    ids_NT = torch.zeros(len(prompts), max(lengths), dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids_NT[row, : len(prompt)] = torch.tensor(prompt)
    lengths_N = torch.tensor(lengths, device=device)
    passed = run(network, network.embed(ids_NT), lengths_N, range(depth), wanted, None)
    last = len(network.blocks) - 1
    return [
        Read(
            {layer: (k[row, :, :length], v[row, :, :length]) for layer, (k, v) in passed.pairs.items()},
            {layer: x[row, : 1 if layer == last else length] for layer, x in passed.residuals.items()},
        )
        for row, length in enumerate(lengths)
    ]


def stack(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Tensors that differ in length along `dim` as one, zeros on the right; a single one is not copied."""
    if len(parts) == 1:
        return parts[0][None]
    shape = list(parts[0].shape)
    shape[dim] = max(part.shape[dim] for part in parts)
    made = parts[0].new_zeros(len(parts), *shape)
    for row, part in enumerate(parts):
        made[row].narrow(dim, 0, part.shape[dim]).copy_(part)
    return made


def run(
    network: Network,
    hidden_NTD: Tensor,
    lengths_N: Tensor,
    layers: range,
    wanted: Collection[int],
    steering: Steering | None,
) -> Passed:
    """Rows, padded on the right, through some blocks; some thousand tokens at a time.

    Padding comes after the text, so causal attention alone keeps it out. Only each row's last position goes
    through the end of the network's last block. `steering`: a coefficient row for every row.
    """
    n_rows, n_tokens = hidden_NTD.shape[:2]
    at_once = max(1, _CHUNK_TOKENS // n_tokens)
    parts = []
    for start in range(0, n_rows, at_once):
        rows = slice(start, start + at_once)
        some = None if steering is None else steering.of(rows)
        longest = int(lengths_N[rows].max())
        parts.append(_run(network, hidden_NTD[rows, :longest], lengths_N[rows], layers, wanted, some))
    if len(parts) == 1:
        return parts[0]
    pairs = {
        layer: tuple(_join([part.pairs[layer][i] for part in parts], n_tokens, 2) for i in range(2))
        for layer in layers
    }
    return Passed(
        cast(dict[int, Pair], pairs),
        {layer: _join([part.residuals[layer] for part in parts], n_tokens, 1) for layer in wanted},
    )


def _join(parts: Sequence[Tensor], n_tokens: int, dim: int) -> Tensor:
    """Rows of several parts, padded to `n_tokens` along `dim`; residuals of ends alone stay one token."""
    shape = list(parts[0].shape)
    shape[0] = sum(len(part) for part in parts)
    shape[dim] = n_tokens if max(part.shape[dim] for part in parts) > 1 else 1
    made = parts[0].new_zeros(shape)
    start = 0
    for part in parts:
        made[start : start + len(part)].narrow(dim, 0, part.shape[dim]).copy_(part)
        start += len(part)
    return made


def _run(
    network: Network,
    hidden_NTD: Tensor,
    lengths_N: Tensor,
    layers: range,
    wanted: Collection[int],
    steering: Steering | None,
) -> Passed:
    n_rows, n_tokens, _ = hidden_NTD.shape
    turns = network.turns(n_tokens, hidden_NTD)
    turns = {
        name: Turn(*(x.repeat(n_rows, 1, 1) for x in (t.cos_N1d, t.sin_N1d))) for name, t in turns.items()
    }
    ends_N = torch.arange(n_rows, device=hidden_NTD.device) * n_tokens + lengths_N - 1
    made = Passed({}, {})
    hidden = hidden_NTD.flatten(0, 1)
    for layer in layers:
        block, is_last = network.blocks[layer], layer == len(network.blocks) - 1

        def attention(q: Tensor, k: Tensor, v: Tensor, layer: int = layer, is_last: bool = is_last) -> Tensor:
            block = network.blocks[layer]
            q, k, v = (x.unflatten(0, (n_rows, -1)) for x in (q, k, v))
            made.pairs[layer] = (k.transpose(1, 2), v.transpose(1, 2))
            if not is_last:
                return causal(q, k, v, block.scale, block.window).flatten(0, 1).flatten(1)
            return _at_ends(q[:, 0], *made.pairs[layer], block.scale, block.window, lengths_N)

        hidden = block.forward(
            hidden, turns[block.rotary], network.head_dim, attention, ends_N if is_last else None
        )
        if steering is not None:
            hidden = steering.plus(layer, hidden.unflatten(0, (n_rows, -1))).flatten(0, 1)
        if layer in wanted:
            made.residuals[layer] = hidden.unflatten(0, (n_rows, -1))
    return made


def _at_ends(
    q_NHd: Tensor, k_NKTd: Tensor, v_NKTd: Tensor, scale: float, window: int | None, lengths_N: Tensor
) -> Tensor:
    """Attention of each row's last position, (N, H * d)."""
    columns_T, lengths_N1 = torch.arange(k_NKTd.shape[2], device=q_NHd.device), lengths_N[:, None]
    seen_NT = columns_T < lengths_N1
    if window is not None:
        seen_NT = seen_NT & (columns_T >= lengths_N1 - window)
    mask = q_NHd.new_zeros(seen_NT.shape).masked_fill_(~seen_NT, HIDDEN)[:, None, None]
    q_NKGd = q_NHd.unflatten(1, (k_NKTd.shape[1], -1))
    return attend(q_NKGd, k_NKTd, v_NKTd, scale, None if bool(seen_NT.all()) else mask)[0].flatten(1)
