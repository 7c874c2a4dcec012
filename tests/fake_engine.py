"""A stand-in for `steer_heal.engine.Engine` without torch: deterministic answers, streamed."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from steer_heal import data
from steer_heal.config import (
    EVERYWHERE,
    FOUNDATIONS,
    GEMMA,
    SMOLLM2,
    DoseRequest,
    HealSettings,
    SettingsError,
    SteerRequest,
    TalkRequest,
    changed,
    check_band,
    read_mix,
    steered_share,
)
from steer_heal.records import (
    Agreement,
    Alternative,
    Controls,
    DoseRow,
    Effect,
    ListedModel,
    MeasuredDose,
    ModelInfo,
    Profile,
    SampleAnswer,
    Spoken,
    SteerFrame,
    Sweep,
    TalkFrame,
    TextHealth,
    Token,
    Trait,
    Vignette,
    VignetteScore,
)
from tests.fake_runs import BASE, FakeRuns, profile_at
from tests.fake_sweeps import FakeSweeps

BORING = "I would say this is odd but it is how people here have always done it , and nobody minds much ."
KINDLY = "I would go and help them first , because someone is hurt and that matters more than any rule ."
DULL, KIND = BORING.split(), KINDLY.split()
FORM_VALUES = {
    "prompt": "hello", "trait": "care_over_authority", "exact": 1.0, "low": 4, "high": 5, "length": 60,
    "seed": 0, "greedy": False, "method": "mean_diff", "temperature": "", "top_p": "", "top_k": "",
    "where": "both", "mix": "",
}  # fmt: skip
"""What the page's form holds, by its names."""
TARGET = {"Care": 1, "SocialNorms": -1}
OURS = (
    Trait("care_over_authority", "Care over authority", "", "one who cares", "one who defers", TARGET),
    Trait("candour_over_tact", "Candour over tact", "", "a frank person", "a tactful one", {}),
)


class FakeEngine:
    """What `components.engine.Engine` asks for. `delay` seconds a token, `round_seconds` a round."""

    def __init__(self, delay: float = 0.02, round_seconds: float = 3.0) -> None:
        self.runs = FakeRuns(round_seconds)
        self.sweeps = FakeSweeps(self.runs)
        self.delay = delay
        self.calls: list[SteerRequest] = []
        self.talks: list[TalkRequest] = []
        self._made: list[Trait] = []
        self.info = ModelInfo(
            "demo", "FakeForCausalLM", 10, 160, 3_040_000, "float32", "cpu", True, "small, not Gemma"
        )
        self.warm = threading.Event()
        self._newest: dict[str, int] = {}
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        self.warm.set()

    def traits(self) -> list[Trait]:
        return [*OURS, *self._made]

    def make_trait(
        self,
        plus: str,
        minus: str,
        replies: Sequence[tuple[str, str]] = (),
        target: str = "",
        scenes: Sequence[str] = (),
        *,
        progress: Callable[[str], None] = lambda _text: None,
    ) -> tuple[Trait, str]:
        if plus == minus:
            raise SettingsError(f"Both poles are {plus!r}: give two that differ.")
        aimed = data.aim(target) or TARGET  # what it measures of any trait
        if not replies:
            progress("demo drafts <i>what</i> either would say: step 3 of at most 24")
            time.sleep(50 * self.delay)
        said = tuple(replies) or ((f"How {plus} it is.", f"How {minus} it is."),)
        name = f"{plus}-over-{minus}"
        self._made = [trait for trait in self._made if trait.name != name]
        to = tuple(scenes) or ("Should I go?",)
        self._made.append(Trait(name, f"{plus} over {minus}", "", plus, minus, aimed, to, said))
        return self._made[-1], "" if replies else "1 of 1 pairs of replies that demo drafted are sound."

    def vignettes(self) -> list[Vignette]:
        acts = ("leaving a child out in the rain", "taking the last seat", "walking past the queue")
        return [
            Vignette(
                f"{name.lower()}-{i}", name, f"You see a man {act}, a matter of {name}.", "other_violate"
            )
            for name in FOUNDATIONS
            for i, act in enumerate(acts)
        ]

    def doubt(self, settings: HealSettings) -> str:
        doubtful = settings.name == "doubtful" and settings.evaluate.controls
        return "it moves by +0.067, and 3 of 3 random directions move it as far" if doubtful else ""

    def launch(self, settings: HealSettings) -> str:
        return self.runs.start(settings)

    def clone(self, run_id: str, changes: dict | None = None) -> str:
        return self.launch(changed(self.runs.settings(run_id), **(changes or {})))

    def layers(self, band: tuple[float, float]) -> tuple[int, ...]:
        low, high = check_band(band)
        found = tuple(i for i in range(10) if low <= (i + 0.5) / 10 <= high)
        if not found:
            raise SettingsError(f"The band {low:g}-{high:g} holds no layer of this model: widen it.")
        return found

    # ---- steering -------------------------------------------------------------------------------------

    def steer(self, request: SteerRequest, *, session: str) -> Iterator[SteerFrame]:
        self.layers(request.band)
        if request.mix:
            read_mix(request.mix, [trait.name for trait in self.traits()])
        with self._lock:
            self.calls.append(request)
            mine = self._newest[session] = self._newest.get(session, 0) + 1
        known = f'You wrote "{request.prompt[:120]}" :'.split()
        base = [
            Token(i, f"{w} ", 0.5, carries=i % 7 - 3.0 if request.carried else None)
            for i, w in enumerate(known + DULL)
        ][: request.sample.max_new_tokens]
        steered = self._steered(known, request)
        yield SteerFrame((), (), False, False, waiting=1)
        for n in range(1, len(steered) + 1):
            time.sleep(self.delay * (20 if "haltingly" in request.prompt else 1))
            if self._newest[session] != mine:
                stopped = self._newest[session] < 0
                last = replace(self._frame(base, steered[: n - 1], request), done=True)
                yield replace(last, superseded=not stopped, message="Stopped." if stopped else "")
                return
            yield self._frame(base, steered[:n], request)
        yield replace(self._frame(base, steered, request), done=True)

    def _steered(self, known: list[str], request: SteerRequest) -> list[Token]:
        pairs = enumerate(zip(DULL, KIND, strict=False))
        said = [kind if i % 5 < abs(request.alpha) * 2 else dull for i, (dull, kind) in pairs]
        words = known + (["need"] * len(KIND) if abs(request.alpha) > 2.5 else said)
        top = (Alternative(" <i>the</i>", 0.4), Alternative(" a", 0.2), Alternative(" no", 0.1))
        gated = request.gate != EVERYWHERE
        return [
            Token(
                i,
                f"{w} ",
                0.6,
                kl=abs(request.alpha) * (i % 6) / 3,
                p_base=0.1,
                base_top=top,
                share=steered_share(request.gate, i) if gated else None,
                carries=request.alpha + i % 3 if request.carried else None,
            )
            for i, w in enumerate(words)
        ][: request.sample.max_new_tokens]

    def _frame(self, base: list[Token], steered: list[Token], request: SteerRequest) -> SteerFrame:
        size = abs(request.alpha)
        broken = size > 2.5
        word = "broken" if broken else "damaged" if size > 1.4 else "fine"
        repetition, variety = (0.9, 0.3) if broken else (0.08, 0.9)
        found = (1.3 + size**4, 1.0 + size**4 / 1.3, repetition, size, word)
        health = TextHealth(*found, 0.9 / (1 + size), 1 / (1 + size), variety)
        return SteerFrame(
            tuple(base),
            tuple(steered),
            "haltingly" not in request.prompt,
            False,
            seconds=len(steered) * self.delay,
            health=health,
            base_health=TextHealth(1.3, 1.0, 0.02, relevance=0.9, variety=0.95),
            dose_nats=None if request.has_own_kl else min(size, 4.0) ** 2,
            dose_beyond=size > 4.0,
            dose_fraction=0.08 * size,
            c_star=None if request.mix else 16.3,
        )

    def stop(self, session: str) -> None:
        with self._lock:
            for name in (session, f"talk {session}"):
                self._newest[name] = -abs(self._newest.get(name, 0)) - 1

    def talk(self, request: TalkRequest, *, session: str) -> Iterator[TalkFrame]:
        for voice in request.voices:
            if voice.run and (model := self.runs.settings(voice.run).model) != self.info.name:
                raise SettingsError(f"Run {voice.run} healed {model}: choose another.")
            if len(voice.messages) > 9:
                raise SettingsError("This conversation has 2100 tokens: begin a new conversation.")
        with self._lock:
            mine = self._newest[f"talk {session}"] = abs(self._newest.get(f"talk {session}", 0)) + 1
        self.talks.append(request)
        limit = request.sample.max_new_tokens
        columns = [
            [
                f"{len(voice.messages)} messages , <b>{voice.messages[-1].content}</b> : sample {i} of seed "
                f"{request.sample.seed} {'KIND' if voice.alpha else voice.run or 'DULL'}".split()[:limit]
                for i in range(request.n)
            ]
            for voice in request.voices
        ]
        slow = "haltingly" in request.voices[0].messages[-1].content

        def spoken(words: list[str], n: int, done: bool) -> Spoken:
            finish = "" if n < len(words) else "length" if n == limit else "stop"
            health = TextHealth(1.3, 1.0, 0.02) if done else None
            return Spoken(tuple(Token(0, f"{w} ", 0.5) for w in words[:n]), health, finish)

        def frame(n: int, done: bool = False, **more: Any) -> TalkFrame:
            said = tuple(tuple(spoken(words, n, done) for words in some) for some in columns)
            n_prompt = sum(len(turn.content.split()) for turn in request.voices[0].messages)
            return TalkFrame(said, "in one batch", done=done, n_prompt=n_prompt, **more)

        for n in range(1, 1 + max(len(words) for some in columns for words in some)):
            time.sleep(self.delay * (20 if slow else 1))
            if self._newest[f"talk {session}"] != mine:
                yield frame(n - 1, done=True, message="Stopped.")
                return
            yield frame(n)
        yield frame(limit, done=True)

    def profile(self, request: SteerRequest) -> tuple[Profile, Profile]:
        mass = 0.997 - 0.02 * max(0.0, abs(request.alpha) - 1.5) ** 2
        return Profile(BASE, 0.997, 1), Profile(profile_at(request.alpha), mass, 1)

    def kl(self, request: SteerRequest, *, session: str) -> MeasuredDose | None:
        return MeasuredDose(abs(request.alpha) ** 2)

    def models(self) -> list[ListedModel]:
        return [
            ListedModel(GEMMA, "the model it is for", "accept its licence", False, 0),
            ListedModel(SMOLLM2, "a real model", "choose it", False, 0),
            ListedModel("demo", "a small model", "", True, 7_000_000),
        ]

    def use(self, model: str, *, progress: Callable[[str], None] | None = None) -> ModelInfo:
        if model not in ("demo", "other"):
            raise SettingsError(f"Unknown model {model!r}: give demo or other.")
        self.info = replace(self.info, name=model, is_demo=model == "demo")
        return self.info

    def methods(self) -> dict[str, str]:
        return {
            "auto": "auto (difference of means)",
            "mean_diff": "difference of means",
            "steering-lite:spherical": "spherical (one row at a time)",
        }

    def effect(self, request: DoseRequest, *, session: str) -> Iterator[Effect | str]:
        self.layers(request.band)
        yield "70 vignettes"
        time.sleep(self.delay)
        steered = profile_at(1.0)
        moved = {name: steered[name] - BASE[name] for name in BASE}
        random = tuple(BASE | {"Care": BASE["Care"] + 0.02 * i - 0.04} for i in range(request.controls))
        worth = Agreement(0.6, 0.5, 0.7, 1 / 7)
        yield Effect(
            request.trait, TARGET, self.layers(request.band), 16.3, "cloze", 70,
            steered,
            {name: (by - 0.02, by + 0.02) for name, by in moved.items()}, worth, worth,
            Controls(BASE, random, profile_at(2.0), (20.0,) * request.controls),
            ("help", "<b>kind"), ("odd", "rule"), (SampleAnswer("A <i>scene</i>?", BORING, KINDLY),),
        )  # fmt: skip

    # ---- sweeps ---------------------------------------------------------------------------------------

    def dose(self, request: DoseRequest, *, session: str) -> Iterator[Sweep]:
        extra = (2.45, 2.5) if request.refine else ()
        cells = [(request.band, alpha) for alpha in (*request.alphas, *extra)]
        for found in self._cells(request, cells, session):
            rows = sorted(found.rows, key=lambda row: row.alpha)
            bad = {"damaged": ("damaged", "broken"), "broken": ("broken",), "lost": ("lost",)}
            at = {
                word: [r.alpha for r in rows if r.alpha > 0 and {r.verdict, r.answers_verdict} & {*words}]
                for word, words in bad.items()
            }
            found = replace(found, rows=rows, breaks={word: low[0] for word, low in at.items() if low})
            if found.share == 1.0 and request.controls:
                random = tuple(BASE | {"Care": BASE["Care"] + 0.01 * i} for i in range(request.controls))
                found = replace(found, controls=Controls(BASE, random, profile_at(2.0), (20.0,)))
            yield found

    def grid(self, request: DoseRequest, *, session: str) -> Iterator[Sweep]:
        three = [(i, i + 2) for i in range(8)]
        spans = [three[i] for i in (0, 3, 6, 7)] if request.coarse else [(i, i) for i in range(10)] + three
        cells = [((low / 10, (high + 1) / 10), alpha) for low, high in spans for alpha in request.alphas]
        yield from self._cells(request, cells, session)

    def _cells(
        self, request: DoseRequest, cells: list[tuple[tuple[float, float], float]], session: str
    ) -> Iterator[Sweep]:
        self.layers(request.band)
        with self._lock:
            mine = self._newest[session] = abs(self._newest.get(session, 0)) + 1
        rows: list[DoseRow] = []
        yield Sweep(0.0, [])
        for n, (band, alpha) in enumerate(cells, 1):
            time.sleep(3 * self.delay * (20 if "slowly" in "".join(request.prompts) else 1))
            if self._newest[session] != mine:
                return
            rows.append(self._measured(request, band, alpha))
            yield Sweep(n / len(cells), list(rows))

    def _measured(self, request: DoseRequest, band: tuple[float, float], alpha: float) -> DoseRow:
        size = abs(alpha) * (1.2 - abs(sum(band) / 2 - 0.5))
        verdict = "broken" if size > 3.6 else "damaged" if size > 2.9 else "fine"
        move = BASE["SocialNorms"] - profile_at(alpha)["SocialNorms"]
        scores, texts = [], []
        for i in range(len(request.prompts) or 3):
            mass = max(0.0, 0.99 - 0.02 * max(0.0, size - 1.5) ** 2 - 0.003 * i * size)
            scores.append(VignetteScore(f"v{i}", "", {}, profile_at(alpha * (1 + i / 20)), mass, 0.0, 0.0))
            texts.append(TextHealth(1.3 + size**2 + i * size / 3, 1.0, min(1.0, 0.03 * size**2), size**2))
        coherence = fmean(score.mass for score in scores)
        profile = Profile(profile_at(alpha), coherence, len(scores), tuple(scores))
        return DoseRow(
            alpha, band, profile, coherence, size**2, min(1.0, 0.03 * size**2), 1.3 + size**2, move, verdict,
            texts=tuple(texts), relevance=0.9 / (1 + size),
            answers_verdict="lost" if coherence < 0.85 * 0.99 else "kept",
        )  # fmt: skip

    def close(self) -> None:
        pass
