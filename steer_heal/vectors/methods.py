"""How a direction is read out of two sets of residuals: one pure function a method, chosen by name."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steer_heal.config import SettingsError


@dataclass(frozen=True, slots=True)
class Method:
    """`direction(positive_NLD, negative_NLD)` -> (L, D); row n of both sets has the same context.

    `unit`: whether each layer's direction is made unit length before it is added. `of_replies`: whether the
    residuals are those of paired replies, and not of a prompt under two personas.
    """

    name: str
    title: str
    direction: Callable[[Tensor, Tensor], Tensor]
    unit: bool = True
    of_replies: bool = False


def mean_difference(positive_NLD: Tensor, negative_NLD: Tensor) -> Tensor:
    """v[l] = mean_n h+[n, l] - mean_n h-[n, l]. Source: Rimsky et al., 2024, arXiv:2312.06681."""
    return positive_NLD.mean(dim=0) - negative_NLD.mean(dim=0)


def principal_component(positive_NLD: Tensor, negative_NLD: Tensor) -> Tensor:
    """v[l] = the first principal component of the paired differences d[n, l] = h+[n, l] - h-[n, l].

    A component has no sign of its own: it points the way most pairs do (and, where they tie, their mean).
    Sources: Zou et al., 2023, arXiv:2310.01405; repeng's `pca_diff`. Errors: `SettingsError` for one pair.
    """
    if len(positive_NLD) < 2:
        raise SettingsError("The method pca needs at least two contexts: raise n_contexts.")
    pairs_LND = (positive_NLD - negative_NLD).transpose(0, 1)
    centred_LND = pairs_LND - pairs_LND.mean(dim=1, keepdim=True)
    v_LD = torch.linalg.svd(centred_LND, full_matrices=False).Vh[:, 0]
    along_LN = torch.einsum("lnd,ld->ln", pairs_LND, v_LD)
    vote_L = along_LN.sign().sum(dim=1)
    sign_L = torch.where(vote_L == 0, along_LN.mean(dim=1).sign(), vote_L.sign())
    return v_LD * torch.where(sign_L == 0, torch.ones_like(sign_L), sign_L)[:, None]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("mean_diff", "persona: difference of means", mean_difference),
        Method(
            "mean_diff_raw", "persona: difference of means, at its own length", mean_difference, unit=False
        ),
        Method("pca", "persona: first principal component of the paired differences", principal_component),
        Method("replies", "paired replies: difference of means", mean_difference, of_replies=True),
    )
}


def method(name: str) -> Method:
    """The method of that name. Errors: `SettingsError` with the known ones."""
    if name not in METHODS:
        raise SettingsError(f"Unknown method {name!r}: choose one of {', '.join(METHODS)}.")
    return METHODS[name]
