"""Rows that begin alike, read as trees: the common beginning once, each row's own end beside it.

A vignette asked in two orders is the same text up to the first answer. All tokens of some trees go through a
block as one flat list; only attention knows whose they are. A prompt by itself is a tree with no trunk.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer_heal.forward.attention import KeyValues, TreeAttention
from steer_heal.forward.network import Network
from steer_heal.vectors.steering import Steering

MIN_TRUNK = 16
"""A shorter beginning in common is not worth a pass of its own."""
_TOKENS = 2048
"""Tokens through the blocks at once for each thread of a CPU: as many as its cache holds."""
_TOKENS_ELSEWHERE = 32_768

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Tree:
    """What the rows have in common, maybe nothing, and the rest of each."""

    trunk: Ids
    branches: tuple[Ids, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))


def tree(rows: Sequence[Ids], n_ends: Sequence[int]) -> Tree:
    """The rows as a tree; each keeps at least so many of its last tokens to itself."""
    columns = zip(*rows, strict=False) if len(rows) > 1 else ()
    common = sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, columns))
    common = min(common, *(len(row) - n for row, n in zip(rows, n_ends, strict=True)))
    common = common if common >= MIN_TRUNK else 0
    return Tree(rows[0][:common], tuple(row[common:] for row in rows))


def chunks(trees: Sequence[Tree], device: torch.device) -> Iterator[list[int]]:
    """Numbers of trees that go through the blocks together: like sizes, no more tokens than is good."""
    limit = _TOKENS * torch.get_num_threads() if device.type == "cpu" else _TOKENS_ELSEWHERE
    order = sorted(range(len(trees)), key=lambda i: (len(trees[i].trunk), max(map(len, trees[i].branches))))
    some: list[int] = []
    for number in order:
        if some and sum(trees[i].n_tokens for i in (*some, number)) > limit:
            yield some
            some = []
        some.append(number)
    if some:
        yield some


@dataclass(frozen=True, eq=False)
class Read:
    """A piece of text that was read: by layer its keys and values, (T, K, d) each, and the residual behind
    the blocks that were asked for, (T, D), behind the last one of its last token alone, (1, D)."""

    pairs: dict[int, KeyValues]
    residuals: dict[int, Tensor]


@dataclass(eq=False)
class Pass:
    """A way of some trees through the blocks. `hidden_ND`: all tokens, trunks first, then branches row by
    row; behind the last block only each row's last `n_ends`. `trunks`, `branches`: keys and values by layer,
    where they were kept, (N or R, T, K, d) each. `residuals`: as `hidden_ND`, where they were asked for."""

    hidden_ND: Tensor
    trunks: dict[int, KeyValues] = field(default_factory=dict)
    branches: dict[int, KeyValues] = field(default_factory=dict)
    residuals: dict[int, Tensor] = field(default_factory=dict)


class PrefixBatch:
    """Trees of as many branches each, laid out for one pass."""

    def __init__(self, network: Network, trees: Sequence[Tree], n_ends: int, device: torch.device) -> None:
        self._network = network
        rows = [branch for one in trees for branch in one.branches]
        self.n_trees, self.n_rows = len(trees), len(rows)
        trunk_ids, trunk_N = _padded([one.trunk for one in trees], device)
        branch_ids, branch_R = _padded(rows, device)
        self.n_trunk, self.n_branch = trunk_ids.shape[1], branch_ids.shape[1]
        before_R = trunk_N.repeat_interleave(self.n_rows // self.n_trees)
        self._before, self._own = before_R.tolist(), branch_R.tolist()
        columns = torch.arange(max(self.n_trunk, self.n_branch), device=device)
        own_RT = before_R[:, None] + columns[: self.n_branch]
        positions_N = torch.cat([columns[: self.n_trunk].repeat(self.n_trees), own_RT.flatten()])
        # A row that has fewer tokens of its own reads its first ones again, which nobody asks for.
        ends_Rn = (branch_R[:, None] - n_ends + columns[:n_ends]).clamp(min=0)
        starts_R = self.n_trees * self.n_trunk + torch.arange(self.n_rows, device=device) * self.n_branch
        self._ends_N = (starts_R[:, None] + ends_Rn).flatten()
        before_R = before_R[:1] if bool((before_R == self.n_trunk).all()) else before_R
        self._all, self._ends = (
            TreeAttention(at_RQ, before_R, self.n_branch, self.n_trunk)
            for at_RQ in (columns[None, : self.n_branch], ends_Rn)
        )
        alone = torch.zeros_like(before_R[:1])
        self._trunks = TreeAttention(columns[None, : self.n_trunk], alone, self.n_trunk, 0)
        hidden_ND = network.embed(torch.cat([trunk_ids.flatten(), branch_ids.flatten()]))
        tables = network.rotary(int(positions_N.max()) + 1, hidden_ND)
        self._tables = {name: table.at(positions_N) for name, table in tables.items()}
        self.start = Pass(hidden_ND)

    def run(
        self,
        begun: Pass,
        layers: range,
        steering: Steering | None = None,
        *,
        keep: bool = False,
        wanted: Collection[int] = (),
    ) -> Pass:
        """From `begun` through some blocks. `steering`: one coefficient row, or one a row where no tree has a
        trunk. `keep`: the keys and values of these layers too. `wanted`: layers whose residual is kept."""
        made = Pass(begun.hidden_ND, dict(begun.trunks), dict(begun.branches))
        rows = 1 if self.n_trunk else self.n_rows

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self._attend(layer, q, k, v, made if keep else None)

        def behind(layer: int, hidden_ND: Tensor) -> Tensor:
            if steering is not None:
                hidden_ND = steering.plus(layer, hidden_ND.unflatten(0, (rows, -1))).flatten(0, 1)
            if layer in wanted:
                made.residuals[layer] = hidden_ND
            return hidden_ND

        made.hidden_ND = self._network.through(
            begun.hidden_ND, self._tables, layers, attend, ends_M=self._ends_N, behind=behind
        )
        return made

    def begun(self, states: Sequence[Tensor]) -> Pass:
        """Where each row's own tokens have this residual, (T, D); of trees without a trunk."""
        made = states[0].new_zeros(self.n_rows, self.n_branch, states[0].shape[1])
        for place_TD, states_TD in zip(made, states, strict=True):
            place_TD[: len(states_TD)] = states_TD
        return Pass(made.flatten(0, 1))

    def reads(self, read: Pass) -> list[list[Read]]:
        """What each row was read as: its trunk where it has one, then its branch; residuals of branches."""
        made, each = [], self.n_rows // self.n_trees
        for row, (before, own) in enumerate(zip(self._before, self._own, strict=True)):
            branch = {layer: _part(pair, row, own) for layer, pair in read.branches.items()}
            pieces = [
                Read(branch, {layer: self._of_row(x, row)[:own] for layer, x in read.residuals.items()})
            ]
            if before:
                trunk = {layer: _part(pair, row // each, before) for layer, pair in read.trunks.items()}
                pieces.insert(0, Read(trunk, {}))
            made.append(pieces)
        return made

    def _of_row(self, hidden_ND: Tensor, row: int) -> Tensor:
        if len(hidden_ND) != len(self._ends_N):
            hidden_ND = hidden_ND[self.n_trees * self.n_trunk :]
        return hidden_ND.unflatten(0, (self.n_rows, -1))[row]

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kept: Pass | None) -> Tensor:
        """Trunks to themselves; branches to their trunk and themselves."""
        block, is_last = self._network.blocks[layer], layer == len(self._network.blocks) - 1
        n = self.n_trees * self.n_trunk
        k_t, v_t = (x[:n].unflatten(0, (self.n_trees, -1)) for x in (k, v)) if n else (k[:0], v[:0])
        k_b, v_b = (x[n:].unflatten(0, (self.n_rows, -1)) for x in (k, v))
        if kept is not None:
            kept.trunks[layer] = (k_t, v_t)
            kept.branches[layer] = (k_b, v_b)
        how = (block.scale, block.window)
        q_b = (q if is_last else q[n:]).unflatten(0, (self.n_rows, -1))
        queries = self._ends if is_last else self._all
        made = queries.attend(q_b, self._joined(k_t, k_b), self._joined(v_t, v_b), *how)
        made = made.flatten(0, 1)
        if n and not is_last:
            q_t = q[:n].unflatten(0, (self.n_trees, -1))
            keys, values = k_t.transpose(1, 2), v_t.transpose(1, 2)
            made = torch.cat([self._trunks.attend(q_t, keys, values, *how).flatten(0, 1), made])
        return made.flatten(1)

    def _joined(self, trunk: Tensor, branch_RTKd: Tensor) -> Tensor:
        """A row's own after its tree's, (R, K, P + T, d)."""
        if self.n_trunk:
            each = trunk[:, None].expand(-1, self.n_rows // self.n_trees, -1, -1, -1).flatten(0, 1)
            branch_RTKd = torch.cat([each, branch_RTKd], dim=1)
        return branch_RTKd.transpose(1, 2)


def _part(pair: KeyValues, row: int, n: int) -> KeyValues:
    return pair[0][row, :n], pair[1][row, :n]


def _padded(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows padded on the right with 0, (N, T), and their lengths."""
    lengths = [len(row) for row in rows]
    ids = [[*row, *[0] * (max(lengths) - len(row))] for row in rows]
    made = torch.tensor(ids, dtype=torch.long, device=device).reshape(len(rows), max(lengths))
    return made, torch.tensor(lengths, device=device)
