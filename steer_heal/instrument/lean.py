"""Choices and clozes through a `generate.lean` network: what rows have in common is read once.

The orders of a vignette share their beginning, as vignettes do where each is asked once; doses share the
blocks below the first steered one, and every word of more than one token is looked at from the keys of its
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steer_heal.data import Frame
from steer_heal.generate.lean.network import Network
from steer_heal.instrument.held import Held
from steer_heal.instrument.logp import picked
from steer_heal.instrument.questions import Answer, Question, never_in_thought
from steer_heal.instrument.trees import Grove, Ids, Pass, Tree, chunks, hold, tree
from steer_heal.models import LanguageModel
from steer_heal.records import Stopped
from steer_heal.vectors.steering import Steering

_TOKENS = 2048
"""Tokens through the blocks at once for each thread of a CPU: as many as its cache holds."""
_TOKENS_ELSEWHERE = 32_768
TOGETHER = 16
"""Vignettes of one row each that are read as one tree, for the template's tokens that they begin with."""
_READ_OUT = 64
"""Positions read out at once: each is a number for every token there is."""


@dataclass(frozen=True)
class Unit:
    """A vignette's rows, one an order, or those of several with one each, as a tree; `asked`: for each dose
    it is read under, their questions."""

    tree: Tree
    asked: dict[int, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Work:
    """What all rows of an evaluation have in common."""

    network: Network
    device: torch.device
    questions: Sequence[Question]
    words: list[list[int]]
    thought: int
    avoid: Tensor
    directions_LD: Tensor
    doses_KL: Tensor

    @property
    def after(self) -> Ids:
        """What is read behind a thought, the prefill last."""
        return self.questions[0].after

    @property
    def n_ends(self) -> int:
        """How many last positions are read out: one before each token of the prefill, and its last."""
        return max(question.n_prefill for question in self.questions) + 1

    @property
    def holds(self) -> bool:
        """Whether rows read on after their prompts."""
        return self.thought > 0 or any(len(ids) > 1 for ids in self.words)

    @property
    def room(self) -> int:
        """How many tokens a row may read on."""
        return (self.thought and self.thought + len(self.after)) + sum(len(ids) - 1 for ids in self.words)

    def prefill(self, number: int) -> Ids:
        question = self.questions[number]
        return (*question.ids, *question.after)[-question.n_prefill :]


@dataclass(frozen=True, eq=False)
class Part:
    """Some trees read under one dose, and the questions that their rows answer."""

    grove: Grove
    read: Pass
    dose: int
    numbers: list[int]


@torch.inference_mode()
def answers(
    lm: LanguageModel,
    frame: Frame,
    questions: Sequence[Question],
    words: list[list[int]],
    doses_KL: Tensor,
    directions_LD: Tensor,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[int, Answer]:
    """Each question's answer by its number, in the order of the list as it was shown.

    `lm` is one for which `generate.lean.why_not` has nothing to say. Raises `Stopped` when `stop()` says so.
    """
    thought = frame.think_budget if frame.think == "full" else 0
    avoid = torch.tensor(sorted(never_in_thought(lm, frame)), dtype=torch.long, device=lm.device)
    work = Work(Network(lm), lm.device, questions, words, thought, avoid, directions_LD, doses_KL)
    found: dict[int, Answer] = {}
    for (doses, _), units in _units(work).items():
        units = sorted(units, key=lambda unit: unit.tree.n_tokens)
        n_rows = len(units[0].tree.branches) * len(doses)
        at_once = max(1, batch_size // n_rows)
        for start in range(0, len(units), at_once):
            if stop and stop():
                raise Stopped
            parts = list(_parts(work, units[start : start + at_once], doses))
            found.update(_held_answers(work, parts) if work.holds else _plain_answers(work, parts))
            if progress:
                progress(len(found), len(questions))
    return found


def _units(work: Work) -> dict[tuple[tuple[int, ...], int], list[Unit]]:
    """What is read, by the doses it is read under and its number of rows. The same rows under several doses
    are one unit."""
    rows: dict[tuple[int, int], list[int]] = {}
    for number, question in enumerate(work.questions):
        rows.setdefault((question.dose, question.vignette), []).append(number)
    same: dict[tuple[int, tuple[Ids, ...]], dict[int, tuple[int, ...]]] = {}
    for (dose, vignette), numbers in rows.items():
        asked = (work.questions[number] for number in numbers)
        ids = tuple(question.ids + (() if work.thought else question.after) for question in asked)
        same.setdefault((vignette, ids), {})[dose] = tuple(numbers)
    alike: dict[tuple[int, ...], list[tuple[tuple[Ids, ...], dict[int, tuple[int, ...]]]]] = {}
    for (_, ids), asked in same.items():
        alike.setdefault(tuple(asked), []).append((ids, asked))
    made: dict[tuple[tuple[int, ...], int], list[Unit]] = {}
    for doses, read in alike.items():
        size = TOGETHER if all(len(ids) == 1 for ids, _ in read) else 1
        read.sort(key=lambda one: sum(map(len, one[0])))
        for start in range(0, len(read), size):
            some = read[start : start + size]
            whole = [row for ids, _ in some for row in ids]
            asked = {dose: tuple(n for _, one in some for n in one[dose]) for dose in doses}
            unit = Unit(tree(whole, 1 if work.thought else work.n_ends), asked)
            made.setdefault((doses, len(whole)), []).append(unit)
    return made


def _parts(work: Work, units: Sequence[Unit], doses: Sequence[int]) -> Iterator[Part]:
    """The units read, some at once, under each dose; blocks up to the first steered one are shared."""
    n_layers = len(work.network.blocks)
    steerings = [Steering(work.directions_LD, work.doses_KL[[dose]]) for dose in doses]
    first = min((layer for steering in steerings for layer in steering.layers), default=n_layers - 1)
    limit = _TOKENS * torch.get_num_threads() if work.device.type == "cpu" else _TOKENS_ELSEWHERE
    for some in chunks([unit.tree for unit in units], limit):
        n_ends = 1 if work.thought else work.n_ends
        grove = Grove(work.network, [units[i].tree for i in some], n_ends, work.device)
        low = grove.run(grove.start, range(first + 1), None, keep=work.holds)
        for dose, steering in zip(doses, steerings, strict=True):
            begun = replace(low, hidden_ND=steering.plus(first, low.hidden_ND[None])[0])
            read = grove.run(begun, range(first + 1, n_layers), steering, keep=work.holds)
            yield Part(grove, read, dose, [number for i in some for number in units[i].asked[dose]])


def _plain_answers(work: Work, parts: Sequence[Part]) -> dict[int, Answer]:
    """From the last positions of the rows alone."""
    found: dict[int, Answer] = {}
    for part in parts:
        ends_RnD = part.read.hidden_ND.unflatten(0, (part.grove.n_rows, -1))
        logp_RF, nlls = _read_out(work, ends_RnD, part.numbers)
        found |= _by_number(part.numbers, logp_RF, nlls)
    return found


def _held_answers(work: Work, parts: Sequence[Part]) -> dict[int, Answer]:
    """Rows that first think, or whose words are more than one token: all parts go on side by side."""
    lengths_R, pairs = hold([(part.grove, part.read) for part in parts], work.room)
    numbers = [number for part in parts for number in part.numbers]
    doses_RL = work.doses_KL[[work.questions[number].dose for number in numbers]]
    held = Held(work.network, lengths_R, pairs, Steering(work.directions_LD, doses_RL))
    ends_RnD = torch.cat([part.read.hidden_ND.unflatten(0, (part.grove.n_rows, -1)) for part in parts])
    if work.thought:
        for _ in range(work.thought):
            logits_RV = work.network.logits(ends_RnD[:, -1]).float()
            ids_R = logits_RV.index_fill_(1, work.avoid, -torch.inf).argmax(dim=-1)
            ends_RnD = held.read(ids_R[:, None], 1)
        after_Rn = torch.tensor(work.after, device=work.device).expand(len(numbers), -1)
        ends_RnD = held.read(after_Rn, work.n_ends)
    logp_RF, nlls = _read_out(work, ends_RnD, numbers)
    return _by_number(numbers, logp_RF + _tails(work, held), nlls)


def _read_out(work: Work, ends_RnD: Tensor, numbers: Sequence[int]) -> tuple[Tensor, list[float]]:
    """Log-probs of each word's first token, (R, F), and each row's mean negative log-prob of its prefill."""
    firsts = [ids[0] for ids in work.words]
    prefills = [work.prefill(number) for number in numbers]
    before = ends_RnD.shape[1] - 1
    wanted_Rn = torch.tensor([[0] * (before - len(ids)) + [*ids] for ids in prefills], device=work.device)
    logp, nlls = [], []
    step = max(1, _READ_OUT // (before + 1))
    for some_RnD, some_Rn in zip(ends_RnD.split(step), wanted_Rn.split(step), strict=True):
        logits_RnV = work.network.logits(some_RnD)
        last_RV = logits_RnV[:, -1].float()
        logp.append(last_RV[:, firsts] - last_RV.logsumexp(-1, keepdim=True))
        nlls += (-picked(logits_RnV[:, :-1].flatten(0, 1), some_Rn.flatten())).view(some_Rn.shape).tolist()
    means = [sum(row[before - len(ids) :]) / len(ids) for row, ids in zip(nlls, prefills, strict=True)]
    return torch.cat(logp), means


def _tails(work: Work, held: Held) -> Tensor | int:
    """What the words' further tokens add to their log-probs, (R, F); 0 where no word has any."""
    ids, follows, columns, wanted = [], [], [], []
    for column, word in enumerate(work.words):
        for place, token in enumerate(word[:-1]):
            follows.append(len(ids) - 1 if place else -1)
            ids.append(token)
            columns.append(column)
            wanted.append(word[place + 1])
    if not ids:
        return 0
    hidden_RnD = held.look(ids, follows)
    wanted_Rn = torch.tensor(wanted, device=work.device).expand(len(hidden_RnD), -1)
    pieces = zip(hidden_RnD.flatten(0, 1).split(_READ_OUT), wanted_Rn.flatten().split(_READ_OUT), strict=True)
    logp_Rn = torch.cat([picked(work.network.logits(x_ND), x_N) for x_ND, x_N in pieces]).view_as(wanted_Rn)
    added_RF = logp_Rn.new_zeros(len(hidden_RnD), len(work.words))
    return added_RF.index_add_(1, torch.tensor(columns, device=work.device), logp_Rn)


def _by_number(numbers: Sequence[int], logp_RF: Tensor, nlls: Sequence[float]) -> dict[int, Answer]:
    rows = zip(numbers, logp_RF.tolist(), nlls, strict=True)
    return {number: Answer(tuple(logp_F), nll) for number, logp_F, nll in rows}
