"""Rows of a batch after what they have read: what follows, and what is read next."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT32_LIMIT = 1 << 24
"""Logits turned into float32 at once."""
_READ_OUT = 128
"""Positions read out at once: each is a number for every token there is."""

Ids = Sequence[int]
Key = tuple[tuple[int, ...], bytes]


@dataclass(frozen=True, slots=True)
class Asked:
    """One row to be read: its tokens, how many of the last ones are read out, the dose that it is under, and
    which rows it is likely to begin alike with."""

    ids: tuple[int, ...]
    n_ends: int = 1
    dose: int = 0
    group: int = 0


def keys(prompts: Sequence[tuple[int, ...]], coefficients_BL: Tensor) -> list[Key]:
    """Rows of one key are the same: their prompt, and their coefficients, empty where they are all 0."""
    rows = zip(prompts, coefficients_BL.cpu(), strict=True)
    return [(prompt, row_L.numpy().tobytes() if row_L.any() else b"") for prompt, row_L in rows]


class Rows(ABC):
    """Rows in a fixed order, which can be read out at their last positions."""

    @property
    @abstractmethod
    def logits_BV(self) -> Tensor:
        """Of each row's next token."""

    @abstractmethod
    def read(self, ids_Bn: Tensor, n_ends: int = 1) -> None:
        """Every row reads on, under its own steering; then the last `n_ends` positions can be read out."""

    @abstractmethod
    def keep(self, kept: Sequence[int]) -> None:
        """The rows that stay, by their numbers here and in their new order; one named twice becomes two."""

    @abstractmethod
    def logits(self, rows: slice) -> Tensor:
        """Of some rows at the positions that can be read out, (b, n, V)."""

    @abstractmethod
    def _further(self, words: Sequence[Ids]) -> Tensor | int:
        """What the words' tokens but the first add to their log-probs, (B, F); 0 where no word has more."""

    def read_out(self, tails: Sequence[Ids], words: Sequence[Ids] = ()) -> tuple[list[list[float]], Tensor]:
        """Log-probs of each row's own last tokens, `tails`, and of each of some words that could follow it,
        summed over the word's tokens, (B, F), both float32."""
        n, firsts, logp, first_BF = max(map(len, tails)) + 1, [ids[0] for ids in words], [], []
        step = max(1, _READ_OUT // n)
        for start in range(0, len(tails), step):
            logits_BnV = self.logits(slice(start, start + step))
            for logits_nV, ids in zip(logits_BnV, tails[start : start + step], strict=True):
                wanted = torch.tensor(ids, device=logits_nV.device, dtype=torch.long)
                logp.append(picked(logits_nV[len(logits_nV) - 1 - len(ids) : -1], wanted).tolist())
            if words:
                last_BV = logits_BnV[:, -1].float()
                first_BF.append(last_BV[:, firsts] - last_BV.logsumexp(-1, keepdim=True))
        return logp, torch.cat(first_BF) + self._further(words) if words else torch.empty(len(tails), 0)


def picked(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    """Log-prob of one token at each position, float32, a slice of positions at a time."""
    step = max(1, FLOAT32_LIMIT // logits_NV.shape[-1])
    parts = [logits_NV.new_empty(0, dtype=torch.float32)]
    for some_NV, some_N in zip(logits_NV.split(step), ids_N.split(step), strict=True):
        wide_NV = some_NV.float()
        parts.append(wide_NV.gather(-1, some_N[:, None]).squeeze(-1) - wide_NV.logsumexp(-1))
    return torch.cat(parts)
