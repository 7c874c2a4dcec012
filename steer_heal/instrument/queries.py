"""Which keys some positions of rows that begin alike see, and attention to those."""

from __future__ import annotations

import torch
from torch import Tensor

from steer_heal.generate.lean.attention import HIDDEN, attend

MILD = 40.0
"""Up to this size a score's exponential needs no largest one taken off: in float32 no sum of them, times any
value, over- or underflows."""
_STEP = {"cpu": 64}
"""Positions at once in causal attention, where leaving out what they cannot see pays for more calls."""
SCORES = 1 << 18
"""As many scores at once stay in the cache from their product to the next."""


class Queries:
    """Some positions of every branch, which attend to the trunk and to the branch up to themselves.

    `at_RQ`: their places within the branch, `before_R`: lengths of trunks; one row where all have the same.
    """

    def __init__(self, at_RQ: Tensor, before_R: Tensor, n_branch: int, n_trunk: int) -> None:
        self._at_RQ, self._before_R11 = at_RQ, before_R[:, None, None]
        self._n_branch, self._n_trunk = n_branch, n_trunk
        self._reach = int(before_R.max()) + n_branch
        self._whole = at_RQ.shape == (1, n_branch)
        self._all_alike = self._whole and len(before_R) == 1
        self._masks: dict[tuple[int | None, int], Tensor] = {}
        self._lower: dict[int, Tensor] = {}
        self._scores: Tensor | None = None

    def mild(self, q: Tensor, window: int | None, largest: float) -> bool:
        """Whether `attend_mild` may be asked: on a CPU in float32, no score further from 0 than `largest`."""
        plain = q.device.type == "cpu" and q.dtype == torch.float32
        return plain and self._whole and self._cut(window) is None and largest <= MILD

    def _cut(self, window: int | None) -> int | None:
        """The window where it hides anything."""
        return window if window is not None and self._reach > window else None

    def attend_mild(
        self, q_RQHd: Tensor, k_RKPd: Tensor, v1_RKPe: Tensor, scale: float, out_RQHd: Tensor
    ) -> None:
        """exp(q k' scale) [v 1]: the last column, the sum of the weights, divides the others.

        Behind each value stands a 1 (e = d + 1), and all are 0 where a trunk is padded. Faster with keys laid
        out across. Heads that share keys are rows of one product; X: a row's heads of keys, Y: its queries,
        head by head.
        """
        n_rows, n, n_heads, size = q_RQHd.shape
        heads = k_RKPd.shape[1]
        group = n_heads // heads
        q_RKQGd, out_RKQGd = (x.unflatten(2, (heads, group)).transpose(1, 2) for x in (q_RQHd, out_RQHd))
        q_XYd = torch.mul(q_RKQGd, scale, out=q_RQHd.new_empty(q_RKQGd.shape)).view(n_rows * heads, -1, size)
        k_XdP, v1_XPe = k_RKPd.flatten(0, 1).mT, v1_RKPe.flatten(0, 1)
        step = min(n, max(16, SCORES * torch.get_num_threads() // (n_rows * n_heads * (self._n_trunk + n))))
        if self._scores is None:
            self._scores = q_RQHd.new_empty(n_rows * n_heads * step * (self._n_trunk + n))
        for start in range(0, n, step):
            end = min(n, start + step)
            seen, rows = self._n_trunk + end, (end - start) * group
            w_XYP = self._scores[: n_rows * heads * rows * seen].view(n_rows * heads, rows, seen)
            torch.bmm(q_XYd[:, start * group : end * group], k_XdP[:, :, :seen], out=w_XYP)
            w_XYP.exp_()[:, :, self._n_trunk + start :].mul_(self._stairs_below(end - start, group))
            x = torch.bmm(w_XYP, v1_XPe[:, :seen]).view(n_rows, heads, end - start, group, size + 1)
            torch.div(x[..., :-1], x[..., -1:], out=out_RKQGd[:, :, start:end])

    def _stairs_below(self, n: int, group: int) -> Tensor:
        """1 where one of `n` neighbours sees another, else 0; a row for each head of a group."""
        if n not in self._lower:
            self._lower[n] = torch.ones(n, n, device=self._at_RQ.device).tril_().repeat_interleave(group, 0)
        return self._lower[n]

    def attend(
        self, q_RQHd: Tensor, k_RKPd: Tensor, v_RKPd: Tensor, scale: float, window: int | None,
        out_RQHd: Tensor,
    ) -> None:  # fmt: skip
        """Attention to keys and values of trunk and branch, written to `out_RQHd`."""
        window = self._cut(window)
        device, n = q_RQHd.device, q_RQHd.shape[1]
        group = 1 if device.type == "cpu" else q_RQHd.shape[2] // k_RKPd.shape[1]
        q_RKXd = q_RQHd.unflatten(2, (-1, group)).permute(0, 2, 1, 3, 4).flatten(2, 3)
        step = n if n < self._n_branch else min(n, _STEP.get(device.type, n))
        for start in range(0, n, step):
            end = min(n, start + step)
            seen = self._n_trunk + (self._n_branch if step == n else end)
            mask = self._mask(window, start, end, seen).to(q_RQHd.dtype)
            mask = mask if group == 1 else mask.repeat_interleave(group, dim=2)
            rows = slice(start * group, end * group)
            x = attend(q_RKXd[:, :, rows], k_RKPd[:, :, :seen], v_RKPd[:, :, :seen], scale, mask)
            out_RQHd[:, start:end] = x[0].unflatten(2, (-1, group)).transpose(1, 2).flatten(2, 3)

    def _mask(self, window: int | None, start: int, end: int, seen: int) -> Tensor:
        """0 where one of the queries `start:end` sees one of the first keys, else `HIDDEN`."""
        if self._all_alike and window is None:
            return self._stairs(end - start, seen)
        if (window, start) not in self._masks:
            at_RQ1 = self._at_RQ[:, start:end, None]
            columns_P = torch.arange(seen, device=at_RQ1.device)
            own_P = columns_P - self._n_trunk
            sees = torch.where(own_P < 0, columns_P < self._before_R11, own_P <= at_RQ1)
            if window is not None:
                places = torch.where(own_P < 0, columns_P, own_P + self._before_R11)
                sees = sees & (self._before_R11 + at_RQ1 - places < window)
            mask = torch.zeros(sees.shape, device=sees.device).masked_fill_(~sees, HIDDEN)
            self._masks[window, start] = mask[:, None]
        return self._masks[window, start]

    def _stairs(self, n: int, seen: int) -> Tensor:
        """The same where each query sees one key more than the one before it, and the last all of them: one
        mask for all steps, which differ only in how many keys all their queries see."""
        if (None, 0) not in self._masks:
            full = torch.full((1, 1, n, self._n_trunk + self._n_branch), HIDDEN, device=self._at_RQ.device)
            self._masks[None, 0] = full.triu_(full.shape[3] - n + 1)
        return self._masks[None, 0][:, :, -n:, -seen:]
