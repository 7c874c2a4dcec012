"""Attention of some positions of rows that begin alike to what they have in common and to their own."""

import torch
from torch import Tensor

from steer_heal.forward.attention import additive, attend, causal, visible


class TreeAttention:
    """Some positions of every branch, which attend to the trunk and to the branch up to themselves.

    `at_RQ`: their places within the branch, `before_R`: lengths of trunks; one row where all have the same.
    """

    def __init__(self, at_RQ: Tensor, before_R: Tensor, n_branch: int, n_trunk: int) -> None:
        self._reach = int(before_R.max()) + n_branch
        self._causal = n_trunk == 0 and at_RQ.shape == (1, n_branch)
        before_R1, columns_P = before_R[:, None], torch.arange(n_trunk + n_branch, device=at_RQ.device)
        trunk_P = columns_P < n_trunk
        self._at_RQ = at_RQ + before_R1
        self._places_RP = torch.where(trunk_P, columns_P, columns_P - n_trunk + before_R1)
        self._text_RP = ~trunk_P | (columns_P < before_R1)
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self, q_RQHd: Tensor, k_RKPd: Tensor, v_RKPd: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Attention to keys and values of trunk and branch, (R, Q, H, d)."""
        if self._causal:
            return causal(q_RQHd, k_RKPd.transpose(1, 2), v_RKPd.transpose(1, 2), scale, window)
        group = 1 if q_RQHd.device.type == "cpu" else q_RQHd.shape[2] // k_RKPd.shape[1]
        window = window if window is not None and self._reach > window else None
        if window not in self._masks:
            sees_RQP = visible(self._at_RQ, self._places_RP, self._text_RP, window)
            self._masks[window] = additive(sees_RQP, q_RQHd.dtype, group)
        q_RKXd = q_RQHd.unflatten(2, (-1, group)).permute(0, 2, 1, 3, 4).flatten(2, 3)
        out, _ = attend(q_RKXd, k_RKPd, v_RKPd, scale, self._masks[window])
        return out.unflatten(2, (-1, group)).transpose(1, 2).flatten(2, 3)
