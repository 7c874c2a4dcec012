"""Attention of queries to keys, and the one place where it is said which keys a query sees."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

KeyValues = tuple[Tensor, Tensor]
"""Keys and values of some tokens at one layer; the shape is said where it is used."""

HIDDEN = -1e30
"""A score that no key survives, finite so that a wholly hidden part has weight 0 and not NaN."""


def visible(
    at_RQ: Tensor, places_RP: Tensor, text_RP: Tensor | None = None, window: int | None = None
) -> Tensor:
    """Which keys each query sees, (R, Q, P): those of text, no later than itself, at most `window` of them.

    `at_RQ`, `places_RP`: places in the text of queries and keys. `text_RP`: False where a key is padding.
    """
    behind_RQP = at_RQ[:, :, None] - places_RP[:, None]
    sees_RQP = behind_RQP >= 0
    if text_RP is not None:
        sees_RQP = sees_RQP & text_RP[:, None]
    return sees_RQP if window is None else sees_RQP & (behind_RQP < window)


def additive(sees_RQP: Tensor, dtype: torch.dtype, group: int = 1) -> Tensor:
    """The mask that attention adds, (R, 1, Q * group, P): 0 where a query sees a key, else `HIDDEN`; each
    query `group` times, for the heads that share keys."""
    mask = torch.zeros(sees_RQP.shape, device=sees_RQP.device).masked_fill_(~sees_RQP, HIDDEN)
    return mask.clamp_(min=torch.finfo(dtype).min).to(dtype).repeat_interleave(group, dim=1)[:, None]


def attend(
    q_BKQd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(q k' scale + mask) v, (B, K, Q, d), and the log of each softmax's denominator, (B, K, Q).

    Queries of all heads that share a key are one axis. Source: Shazeer, 2019, arXiv:1911.02150; Dao et al.,
    2022, arXiv:2205.14135 (torch's kernel for the CPU, which gives the denominators too).
    """
    if q_BKQd.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(q_BKQd, k_BKTd, v_BKTd, attn_mask=mask, scale=scale)
    return explicit(q_BKQd, k_BKTd, v_BKTd, scale, mask)


def explicit(
    q_BKQd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`attend` in plain operations, for any device."""
    scores = (q_BKQd @ k_BKTd.mT).float() * scale
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(v_BKTd.dtype) @ v_BKTd, scores.logsumexp(dim=-1)


def causal(q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, scale: float, window: int | None) -> Tensor:
    """Each position attends to itself and those before it, at most `window` of them: (B, T, H, d)."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BTKd, v_BTKd))
    at_1T, mask = torch.arange(q.shape[2], device=q.device)[None], None
    if window is not None and q.shape[2] > window:
        mask = visible(at_1T, at_1T, window=window)[:, None]
    made = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return made.transpose(1, 2)


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Attention over two sets of keys from attention over each, (..., d), and their log denominators."""
    share = torch.sigmoid(lse - other_lse)[..., None]
    return torch.lerp(other.float(), out.float(), share).to(out.dtype)


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
