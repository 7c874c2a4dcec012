"""What a residual carries of a trait: its projection on the trait's direction, in units of neutral text's.

    z[l] = (h[l] . u[l] - mean[l]) / spread[l]

h[l] is the residual behind block l, with what steering adds there; u[l] the direction at unit length; mean
and spread (the standard deviation) are of h . u over the tokens of neutral text, unsteered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import functional

from steer_heal.models import LanguageModel, left_pad, user
from steer_heal.vectors.vector import of_blocks

VERSION = 1
"""To be raised by hand with every change of what `neutral` gives: no older ones are then found again."""
_LEAST_SPREAD = 1e-12


@dataclass(frozen=True)
class Neutral:
    """Mean and spread of neutral text along a direction, behind each block."""

    mean_L: tuple[float, ...]
    spread_L: tuple[float, ...]


def neutral(directions_LD: Tensor, residuals_NLD: Tensor) -> Neutral:
    """Of the residuals of neutral text, as `text_residuals` gives them, along the direction."""
    along_NL = (residuals_NLD * functional.normalize(directions_LD.float(), dim=-1)).sum(dim=-1)
    spread_L, mean_L = torch.std_mean(along_NL, dim=0)
    return Neutral(tuple(mean_L.tolist()), tuple(spread_L.clamp(min=_LEAST_SPREAD).tolist()))


class Probe:
    """Looks at the residual behind some blocks each time that rows are read; `seen_BK` is what the last look
    found, for each row at each of `layers`."""

    def __init__(self, directions_LD: Tensor, of_neutral: Neutral, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._units = dict(enumerate(functional.normalize(directions_LD.float(), dim=-1)))
        self._neutral = of_neutral
        self._seen: dict[int, Tensor] = {}

    def look(self, layer: int, hidden_BTD: Tensor) -> None:
        """At the rows' last positions."""
        if layer in self.layers:
            self._seen[layer] = self._z(layer, hidden_BTD[:, -1])

    @property
    def seen_BK(self) -> list[list[float]]:
        return torch.stack([self._seen[layer] for layer in self.layers], dim=1).tolist()

    def of_text(self, lm: LanguageModel, prompt: Sequence[int], ids: Sequence[int]) -> list[list[float]]:
        """The same for each of the tokens `ids`, read in one pass after the prompt without steering."""
        whole_1T = torch.tensor([[*prompt, *ids]], device=lm.device)
        hidden_TLD = of_blocks(lm, lambda hidden_1TD: hidden_1TD[0, len(prompt) :], input_ids=whole_1T)
        return torch.stack([self._z(layer, hidden_TLD[:, layer]) for layer in self.layers], dim=1).tolist()

    def _z(self, layer: int, hidden_ND: Tensor) -> Tensor:
        units_D = self._units[layer] = self._units[layer].to(hidden_ND.device)
        along_N = (hidden_ND.float() * units_D).sum(dim=-1)
        return (along_N - self._neutral.mean_L[layer]) / self._neutral.spread_L[layer]


@torch.inference_mode()
def text_residuals(lm: LanguageModel, texts: Sequence[str]) -> Tensor:
    """Output of every block at the tokens of what a user says, without the template's that all of the texts
    have around them: (N, L, D), float32, on the CPU."""
    rows = [lm.encode_chat([user(text)]) for text in texts]
    before, behind = _common(rows), _common([ids[::-1] for ids in rows])
    batch = left_pad(rows, lm.pad_id, lm.device)
    longest = batch.ids_BT.shape[1]

    def own(hidden_BTD: Tensor) -> Tensor:
        starts = [longest - len(ids) + before for ids in rows]
        parts = [
            hidden_TD[start : longest - behind] for start, hidden_TD in zip(starts, hidden_BTD, strict=True)
        ]
        return torch.cat(parts).float().cpu()

    return of_blocks(lm, own, **batch.inputs)


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many ids the rows begin alike with, fewer than any has."""
    alike = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False)))
    return min(alike, min(map(len, rows)) - 1)
