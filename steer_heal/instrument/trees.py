"""Rows that begin alike, read as a tree: the common beginning once, each row's own end beside it.

A vignette asked in two orders is the same text up to the first answer. All tokens of some trees go through a
block as one flat list; only attention knows whose they are. Works on a `generate.lean` network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer_heal.generate.lean.network import Network
from steer_heal.instrument.queries import Queries
from steer_heal.vectors.steering import Steering

MIN_TRUNK = 16
"""A shorter beginning in common is not worth a pass of its own."""
Ids = tuple[int, ...]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Tree:
    """What the rows have in common, maybe nothing, and the rest of each."""

    trunk: Ids
    branches: tuple[Ids, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))


def tree(rows: Sequence[Ids], n_ends: int) -> Tree:
    """The rows as a tree; each keeps at least its last `n_ends` tokens to itself."""
    columns = zip(*rows, strict=False) if len(rows) > 1 else ()
    common = sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, columns))
    common = min(common, min(map(len, rows)) - n_ends)
    common = common if common >= MIN_TRUNK else 0
    return Tree(rows[0][:common], tuple(row[common:] for row in rows))


def chunks(trees: Sequence[Tree], n_tokens: int) -> Iterator[list[int]]:
    """Numbers of trees that go through the blocks together: like sizes, at most so many tokens (or one)."""
    order = sorted(range(len(trees)), key=lambda i: (len(trees[i].trunk), max(map(len, trees[i].branches))))
    some: list[int] = []
    for number in order:
        if some and sum(trees[i].n_tokens for i in (*some, number)) > n_tokens:
            yield some
            some = []
        some.append(number)
    if some:
        yield some


@dataclass(eq=False)
class Pass:
    """A way of some trees through the blocks. `hidden_ND`: all tokens, trunks first, then branches row by
    row; behind the last block only each row's last `n_ends`. `trunks`, `branches`: keys and values by layer,
    where they were kept, (N or R, T, K, d) each."""

    hidden_ND: Tensor
    trunks: dict[int, Pair] = field(default_factory=dict)
    branches: dict[int, Pair] = field(default_factory=dict)


class Grove:
    """Trees of as many branches each, laid out for one pass."""

    def __init__(self, network: Network, trees: Sequence[Tree], n_ends: int, device: torch.device) -> None:
        self._network, self.n_ends = network, n_ends
        rows = [branch for one in trees for branch in one.branches]
        self.n_trees, self.n_rows = len(trees), len(rows)
        trunk_ids, self.trunk_N = _padded([one.trunk for one in trees], device)
        branch_ids, self.branch_R = _padded(rows, device)
        self.n_trunk, self.n_branch = trunk_ids.shape[1], branch_ids.shape[1]
        self._ids = torch.cat([trunk_ids.flatten(), branch_ids.flatten()])
        self.before_R = self.trunk_N.repeat_interleave(self.n_rows // self.n_trees)
        self.before, self.own = self.before_R.tolist(), self.branch_R.tolist()
        columns = torch.arange(max(self.n_trunk, self.n_branch), device=device)
        own_RT = self.before_R[:, None] + columns[: self.n_branch]
        positions_N = torch.cat([columns[: self.n_trunk].repeat(self.n_trees), own_RT.flatten()])
        ends_Rn = self.branch_R[:, None] - n_ends + columns[:n_ends]
        starts_R = self.n_trees * self.n_trunk + torch.arange(self.n_rows, device=device) * self.n_branch
        self._ends_N = (starts_R[:, None] + ends_Rn).flatten()
        padding_RP = columns[: self.n_trunk] >= self.before_R[:, None]
        self._padding_RP = padding_RP if bool(padding_RP.any()) else None
        before_R = self.before_R[:1] if self._padding_RP is None else self.before_R
        self._all, self._ends = (
            Queries(at_RQ, before_R, self.n_branch, self.n_trunk)
            for at_RQ in (columns[None, : self.n_branch], ends_Rn)
        )
        self._trunks = Queries(columns[None, : self.n_trunk], torch.zeros_like(columns[:1]), self.n_trunk, 0)
        hidden_ND = network.embed(self._ids)
        tables = network.turns(int(positions_N.max()) + 1, hidden_ND)
        self._turns = {name: turn.at(positions_N) for name, turn in tables.items()}
        self.start = Pass(hidden_ND)

    def run(self, begun: Pass, layers: range, steering: Steering | None, *, keep: bool = False) -> Pass:
        """From `begun` through some blocks, every row under the one coefficient row of `steering`.

        `keep`: the keys and values of these layers too.
        """
        made = Pass(begun.hidden_ND, dict(begun.trunks), dict(begun.branches))
        for layer in layers:
            block, is_last = self._network.blocks[layer], layer == len(self._network.blocks) - 1

            def attention(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
                return self._attend(layer, q, k, v, made if keep else None)

            made.hidden_ND = block.forward(
                made.hidden_ND,
                self._turns[block.rotary],
                self._network.head_dim,
                attention,
                self._ends_N if is_last else None,
            )
            if steering is not None:
                made.hidden_ND = steering.plus(layer, made.hidden_ND[None])[0]
        return made

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kept: Pass | None) -> Tensor:
        """Trunks to themselves; branches to their trunk and themselves."""
        block, is_last = self._network.blocks[layer], layer == len(self._network.blocks) - 1
        n = self.n_trees * self.n_trunk
        k_t, v_t = (x[:n].unflatten(0, (self.n_trees, -1)) for x in (k, v)) if n else (k[:0], v[:0])
        k_b, v_b = (x[n:].unflatten(0, (self.n_rows, -1)) for x in (k, v))
        if kept is not None:
            kept.trunks[layer] = (k_t, v_t)
            kept.branches[layer] = (k_b, v_b)
        q_t, q_b = (q[:0], q) if is_last else (q[:n], q[n:])
        out = torch.empty_like(q)
        out_t, out_b = out[: len(q_t)], out[len(q_t) :]
        queries = self._ends if is_last else self._all
        mild = queries.mild(q, block.window, block.largest_score())
        keys, values = self._joined(k_t, k_b, across=mild), self._joined(v_t, v_b, ones=int(mild))

        def attend(some: Queries, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
            if mild:
                some.attend_mild(q, k, v, block.scale, out)
            else:
                some.attend(q, k, v, block.scale, block.window, out)

        if len(q_t):
            q_t, out_t = (x.unflatten(0, (self.n_trees, -1)) for x in (q_t, out_t))
            each = self.n_rows // self.n_trees
            k_t, v_t = (x[::each, :, : self.n_trunk] for x in (keys, values))
            attend(self._trunks, q_t, k_t, v_t, out_t)
        if mild and self._padding_RP is not None:
            values[:, :, : self.n_trunk].masked_fill_(self._padding_RP[:, None, :, None], 0.0)
        q_b, out_b = (x.unflatten(0, (self.n_rows, -1)) for x in (q_b, out_b))
        attend(queries, q_b, keys, values, out_b)
        return out.flatten(1)

    def _joined(self, trunk: Tensor, branch_RTKd: Tensor, *, ones: int = 0, across: bool = False) -> Tensor:
        """A row's own after its tree's, (R, K, P + T, d), and columns of ones behind them.

        `across`: in memory one dimension of all positions after the other.
        """
        n_rows, n, heads, size = branch_RTKd.shape
        size, width = size + ones, self.n_trunk + n
        layout = (size, width) if across else (width, size)
        made = branch_RTKd.new_empty(n_rows, heads, *layout)
        made = made.mT if across else made
        made[..., size - ones :] = 1.0
        both = made[..., : size - ones]
        if self.n_trunk:
            each = both.unflatten(0, (self.n_trees, -1))[:, :, :, : self.n_trunk]
            each.copy_(trunk.transpose(1, 2)[:, None])
        both[:, :, self.n_trunk :] = branch_RTKd.transpose(1, 2)
        return made


def _padded(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows padded on the right with 0, (N, T), and their lengths."""
    lengths = [len(row) for row in rows]
    ids = [[*row, *[0] * (max(lengths) - len(row))] for row in rows]
    made = torch.tensor(ids, dtype=torch.long, device=device).reshape(len(rows), max(lengths))
    return made, torch.tensor(lengths, device=device)


def hold(parts: Sequence[tuple[Grove, Pass]], room: int) -> tuple[Tensor, dict[int, Pair]]:
    """The rows' lengths, and by layer their keys and values, trunk and branch end to end, (R, K, T, d).

    Columns beyond a row's length are zeros, `room` of them beyond the longest.
    """
    lengths_R = torch.cat([grove.before_R + grove.branch_R for grove, _ in parts])
    width = int(lengths_R.max()) + room
    made: dict[int, Pair] = {}
    for layer, some in parts[0][1].branches.items():
        _, _, heads, size = some[0].shape
        both = tuple(some[0].new_zeros(len(lengths_R), heads, width, size) for _ in range(2))
        for which, buffer in enumerate(both):
            rows = iter(buffer)
            for grove, read in parts:
                trunk, branch = read.trunks[layer][which], read.branches[layer][which]
                each = grove.n_rows // grove.n_trees
                for row, (t, b) in enumerate(zip(grove.before, grove.own, strict=True)):
                    place = next(rows).transpose(0, 1)
                    if t:
                        place[:t] = trunk[row // each, :t]
                    place[t : t + b] = branch[row, :b]
        made[layer] = (both[0], both[1])
    return lengths_R, made
