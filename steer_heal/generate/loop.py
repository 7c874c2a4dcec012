"""Prefill once, then one token a step for all lanes; lanes that ended leave the batch."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from steer_heal import forward
from steer_heal.config import EVERYWHERE, MAX_PROMPT_TOKENS, SampleSettings, SettingsError, steered_share
from steer_heal.generate.divergence import diverge, probability
from steer_heal.generate.rows import Plan, Row, plan
from steer_heal.generate.sampling import draw, sampler
from steer_heal.generate.text import TextStream
from steer_heal.models import LanguageModel
from steer_heal.records import Alternative, Completion, Token
from steer_heal.vectors.probe import Probe
from steer_heal.vectors.steering import Operator, n_mixed

Stop = Callable[[], bool]
Step = list[tuple[int, Token]]


def decode(
    lm: LanguageModel,
    rows: Sequence[Row],
    directions_LD: Tensor | Operator,
    sample: SampleSettings,
    *,
    stop: Stop | None = None,
    over: Callable[[int], bool] | None = None,
    store: forward.PrefixStore | None = None,
    probe: Probe | None = None,
    carried: Callable[[int, list[float]], None] | None = None,
) -> Iterator[Step]:
    """Write all rows together; each item is one step, (row, token) for every row still writing.

    `directions_LD`: one direction a layer, or (M, L, D) of M vectors, added as each row's coefficients say,
    or what steers instead. A row ends with an end-of-answer token, whose text is empty, or at
    `max_new_tokens`. `stop` is asked before every step, and `over` of every row: one that is over leaves, the
    others go on. No hook stays on the model between two items. `store` keeps read prompts for the next call
    on the same weights. `carried` hears before the next step of each row what `probe` saw, at each of its
    layers, of the token that was written last. Errors: `SettingsError`.
    """
    if not rows or (stop and stop()):
        return
    _check(lm, rows, sample)
    made = plan(rows, (lm.n_layers, *n_mixed(directions_LD)))
    batch = _Batch(lm, made, directions_LD, sample, store, probe)
    for step in itertools.count():
        if over is not None:
            batch.leave(over)
        if (step and batch.done) or (stop and stop()):
            return
        if step:
            batch.advance()
        if step and probe and carried:
            for lane, seen_K in batch.seen(probe):
                for row in batch.rows_of_lane[lane]:
                    carried(row, seen_K)
        yield [(row, token) for lane, token in batch.draw(step) for row in batch.rows_of_lane[lane]]


def complete(
    lm: LanguageModel,
    rows: Sequence[Row],
    directions_LD: Tensor | Operator,
    sample: SampleSettings,
    *,
    batch_size: int = 64,
    stop: Stop | None = None,
    store: forward.PrefixStore | None = None,
    progress: Callable[[int, int], None] | None = None,
    enough: Callable[[int, str], bool] | None = None,
) -> list[Completion]:
    """Write all rows, `batch_size` at a time, those of like length together; one completion a row, in order.

    `store` as in `decode`. `progress` hears of (rows finished, rows). `enough`, asked of each row's number
    and text so far, ends a row early. When stopped, rows are given as far as they came.
    """
    written: list[list[Token]] = [[] for _ in rows]
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt_ids))
    for start in range(0, len(rows), batch_size):
        chunk = by_length[start : start + batch_size]
        some = [rows[index] for index in chunk]
        over = None if enough is None else partial(_is_enough, enough, written, chunk)
        for step in decode(lm, some, directions_LD, sample, stop=stop, over=over, store=store):
            for number, token in step:
                written[chunk[number]].append(token)
        if progress:
            progress(min(start + batch_size, len(rows)), len(rows))
    return [_completion(lm, row, tokens) for row, tokens in zip(rows, written, strict=True)]


def _is_enough(
    enough: Callable[[int, str], bool], written: Sequence[Sequence[Token]], chunk: Sequence[int], number: int
) -> bool:
    return enough(chunk[number], _text(written[chunk[number]]))


def _text(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def _completion(lm: LanguageModel, row: Row, tokens: list[Token]) -> Completion:
    ended = bool(tokens) and tokens[-1].id in lm.eos_ids
    return Completion(_text(tokens), tuple(tokens), ended, row.alpha, row.prompt)


def _check(lm: LanguageModel, rows: Sequence[Row], sample: SampleSettings) -> None:
    forward.check_cache(lm.config)
    longest = max(len(row.prompt_ids) for row in rows)
    if longest > MAX_PROMPT_TOKENS:
        raise SettingsError(f"The prompt has {longest} tokens: shorten it to {MAX_PROMPT_TOKENS} or fewer.")
    more = max((row.sample or sample).max_new_tokens for row in rows)
    if longest + more > lm.n_positions:
        raise SettingsError(
            f"{lm.name} reads {lm.n_positions} tokens at most, and the prompt has {longest}: shorten it, or "
            f"ask for {max(0, int(lm.n_positions) - longest)} new tokens or fewer, not {more}."
        )


class _Batch:
    """The lanes still writing, then those that only read, and what has read them.

    A lane that is measured reads its base's logits at `_shadow_at`: a lane of the same prompt and tokens
    without steering. Where lanes of one base write different tokens, the base becomes as many lanes.
    """

    def __init__(
        self,
        lm: LanguageModel,
        made: Plan,
        directions_LD: Tensor | Operator,
        sample: SampleSettings,
        store: forward.PrefixStore | None,
        probe: Probe | None,
    ) -> None:
        self._lm, self._plan = lm, made
        self.rows_of_lane = dict(made.rows_of_lane)
        hows = [lane.sample or sample for lane in made.lanes]
        self._samplers = [sampler(how, lm.sampling) for how in hows]
        self._last_step = [how.max_new_tokens - 1 for how in hows]
        self._writers = [number for number, lane in enumerate(made.lanes) if lane.writes]
        self._shadow_at = dict(made.shadow_of_lane)
        room = max(how.max_new_tokens for how in hows)
        with torch.inference_mode():
            self._rows = forward.open(lm, directions_LD).begin(
                [lane.prompt_ids for lane in made.lanes],
                torch.stack([lane.coefficients_L for lane in made.lanes]),
                room,
                n_more=sum(lane.n_more for lane in made.lanes),
                store=store,
                gates=[lane.where for lane in made.lanes],
                probe=probe,
            )
        self._n_lanes = len(made.lanes)
        self._streams = {lane: TextStream(lm.decode) for lane in self._writers}
        self._token_text = lru_cache(maxsize=None)(lambda token: lm.decode([token]))
        self._next: dict[int, int] = {}

    @property
    def done(self) -> bool:
        return not self._next

    def leave(self, over: Callable[[int], bool]) -> None:
        """Forget the rows that are over, and the lanes that no row needs any more."""
        for lane in list(self._next) or self._writers:
            self.rows_of_lane[lane] = [row for row in self.rows_of_lane[lane] if not over(row)]
            if not self.rows_of_lane[lane]:
                self._next.pop(lane, None)

    def seen(self, probe: Probe) -> Iterator[tuple[int, list[float]]]:
        """What the probe saw of the token that each writing lane read last."""
        return zip(self._writers, probe.seen_BK, strict=False)

    @torch.inference_mode()
    def draw(self, step: int) -> list[tuple[int, Token]]:
        """One token for every writing lane; those that do not end are left in `_next`."""
        writers = self._writers
        logits_WV = self._rows.logits_BV[: len(writers)]
        streams = [self._plan.lanes[lane].rng_stream for lane in writers]
        ids_W = draw([self._samplers[lane] for lane in writers], logits_WV, streams, step)
        ids, measured = ids_W.tolist(), self._measure(logits_WV, ids_W)
        lasts = [self._last_step[lane] for lane in writers]
        ended = [token in self._lm.eos_ids or step == last for token, last in zip(ids, lasts, strict=True)]
        self._next = {lane: token for lane, token, over in zip(writers, ids, ended, strict=True) if not over}
        for i, lane in enumerate(writers):
            if (gate := self._plan.lanes[lane].where) != EVERYWHERE:
                measured[i]["share"] = steered_share(gate, step)
        return [
            (
                lane,
                Token(ids[i], self._streams[lane].push(ids[i], last=ended[i]), **measured[i]),
            )
            for i, lane in enumerate(writers)
        ]

    def _measure(self, logits_WV: Tensor, ids_W: Tensor) -> dict[int, dict[str, Any]]:
        """The written tokens' probabilities, by the writer's index; KL, probability under base and base's
        favourites too where it has a shadow."""
        alone = [i for i, lane in enumerate(self._writers) if lane not in self._shadow_at]
        index = [i for i, lane in enumerate(self._writers) if lane in self._shadow_at]
        some = slice(None) if not index else alone
        p_alone = probability(logits_WV[some], ids_W[some]).tolist() if alone else []
        measured: dict[int, dict[str, Any]] = {i: {"p": p} for i, p in zip(alone, p_alone, strict=True)}
        if not index:
            return measured
        shadows = [self._shadow_at[self._writers[i]] for i in index]
        distinct = sorted(set(shadows))
        base_UV = self._rows.logits_BV[distinct]
        found = diverge(logits_WV[index], base_UV, [distinct.index(lane) for lane in shadows], ids_W[index])
        columns = (found.p_B, found.kl_B, found.p_base_B, found.top_ids_BN, found.top_p_BN)
        for i, p, kl, p_base, top, top_p in zip(index, *(one.tolist() for one in columns), strict=True):
            base_top = tuple(map(Alternative, map(self._token_text, top), top_p))
            measured[i] = {"p": p, "kl": kl, "p_base": p_base, "base_top": base_top}
        return measured

    @torch.inference_mode()
    def advance(self) -> None:
        """Drop what ended, part bases from lanes that wrote otherwise, and read the tokens just drawn."""
        source = [at for at, lane in enumerate(self._writers) if lane in self._next]
        self._writers = [self._writers[at] for at in source]
        ids = [self._next[lane] for lane in self._writers]
        read_by = {(at, token): new for new, (at, token) in enumerate(zip(source, ids, strict=True))}
        for lane in self._writers:
            if lane in self._shadow_at:
                wanted = (self._shadow_at[lane], self._next[lane])
                self._shadow_at[lane] = read_by.setdefault(wanted, len(source))
                if self._shadow_at[lane] == len(source):
                    source.append(wanted[0])
                    ids.append(wanted[1])
        if source != list(range(self._n_lanes)):
            self._rows.keep(source)
            self._n_lanes = len(source)
        self._rows.read(torch.tensor(ids, device=self._lm.device)[:, None])
