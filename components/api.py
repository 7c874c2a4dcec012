"""The page's actions under names, for programs: `gradio_client`, plain HTTP, and MCP where it is installed.

Each function is an endpoint of its own name; types, docstring and argument texts are what a client sees.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from typing import Any
from uuid import uuid4

import gradio as gr
from pydantic import ValidationError, validate_call

from components.api_runs import RunActions
from components.engine import Engine
from steer_heal.config import (
    AUTO,
    BASE,
    DEFAULT_BAND,
    DEFAULT_TRAIT,
    EVERYWHERE,
    DoseRequest,
    SampleSettings,
    SettingsError,
    SteerRequest,
    TalkRequest,
    Voice,
    build,
    read_voice,
)

_FOLDERS = re.compile(r"(?<![\w/.])~?/(?:[^\s/:'\"]+/)+")


def serve(engine: Engine) -> None:
    """Add the endpoints to the page being built."""
    for group in (Actions(engine), RunActions(engine)):
        for name in vars(type(group)):
            if not name.startswith("_"):
                action = getattr(group, name)
                gr.api(_said(action), api_name=name, api_description=inspect.getdoc(action))


def _said(action: Callable[..., Any]) -> Callable[..., Any]:
    """The action with its arguments checked against their types, and bad input as an error that a client is
    shown, one sentence; nothing else is let through."""
    checked = validate_call(action)

    @wraps(action)
    def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with _told():
            yield from checked(*args, **kwargs)

    @wraps(action)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _told():
            return checked(*args, **kwargs)

    return stream if inspect.isgeneratorfunction(action) else call


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        raise gr.Error(placeless(str(error)), print_exception=False) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise gr.Error(placeless(f"{where}: {first['msg']}."), print_exception=False) from error


@contextmanager
def _session(engine: Engine) -> Iterator[str]:
    """The name of a session for one call, whose work ends with it."""
    session = f"api-{uuid4().hex}"
    try:
        yield session
    finally:
        engine.stop(session)


def placeless(message: str) -> str:
    """The message without the folders of this machine: of each path only its last part."""
    return _FOLDERS.sub("", message)


class Actions:
    """What is asked of the model; each public method is an endpoint."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> dict:
        """What can be asked for: the loaded model, traits, extraction methods and vignettes."""
        return {
            "model": asdict(self._engine.info),
            "traits": [asdict(trait) for trait in self._engine.traits()],
            "methods": self._engine.methods(),
            "vignettes": [asdict(vignette) for vignette in self._engine.vignettes()],
        }

    def make_trait(
        self,
        plus: str,
        minus: str,
        replies: list[tuple[str, str]] | None = None,
        target: str = "",
        scenes: list[str] | None = None,
    ) -> dict:
        """Make a trait between two poles, kept on the page's machine; steer along it by its name.

        Args:
            plus: what positive alpha pushes towards, a word or two or a whole persona
            minus: its opposite
            replies: pairs of what either pole would say; the model drafts them when none
            target: foundations that it should move, such as "Care=1, SocialNorms=-1"; its own axis if none
            scenes: messages that the replies answer; the model drafts them, or ours are taken, when none
        """
        trait, said = self._engine.make_trait(plus, minus, replies or (), target, scenes or ())
        return asdict(trait) | {"drafted": said}

    def steer(
        self,
        prompt: str,
        alpha: float = 1.0,
        trait: str = DEFAULT_TRAIT,
        band_low: float = DEFAULT_BAND[0],
        band_high: float = DEFAULT_BAND[1],
        tokens: int = 60,
        seed: int = 0,
        greedy: bool = False,
        method: str = AUTO,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        where: str = EVERYWHERE,
        mix: str = "",
        carried: bool = False,
    ) -> Iterator[dict]:
        """Answer a prompt twice, without and with steering; each item holds both texts so far.

        Args:
            prompt: What the model is told.
            alpha: Dose in units of c*; 0 is base, 1 is one nat, negative turns round.
            trait: Name of the axis to move along, see describe.
            band_low: Lower end of the steered layers, as a share of depth from 0 to 1.
            band_high: Upper end of the steered layers, as a share of depth from 0 to 1.
            tokens: Longest answer, in tokens.
            seed: Of the random numbers both answers share.
            greedy: Always take the likeliest token.
            method: How the vector is extracted, see describe.
            temperature: Of the drawing, 0 is greedy; the model's own when none, see describe.
            top_p: Share of the probability that is drawn from, 1 is all of it; the model's own when none.
            top_k: How many tokens are drawn from, 0 is all of them; the model's own when none.
            where: Which tokens are steered, both, prompt, answer, or of the answer first N, after N, ramp N.
            mix: Instead of the trait's vector, such as "0.8 warm - 0.4 formal @answer", in units of each
                one's c*; the last item then has the mix's own KL as dose_nats.
            carried: Whether each token is told with what it carries of the trait, in spreads of neutral text.
        """
        values = {"prompt": prompt, "alpha": alpha, "trait": trait, "method": method, "where": where}
        values |= {"mix": mix, "carried": carried}
        drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        sample = build(SampleSettings, max_new_tokens=tokens, seed=seed, greedy=greedy, **drawn)
        request = build(SteerRequest, **values, band=(band_low, band_high), sample=sample)
        with _session(self._engine) as session:
            told: dict[str, Any] = {}
            for told in map(_frame, self._engine.steer(request, session=session)):
                yield told
            if told["done"] and request.has_own_kl and (dose := self._engine.kl(request, session=session)):
                yield {**told, "dose_nats": dose.nats, "message": dose.message or told["message"]}

    def talk(
        self,
        messages: list[dict[str, str]],
        voices: list[str] | None = None,
        alpha: float = 1.0,
        trait: str = DEFAULT_TRAIT,
        band_low: float = DEFAULT_BAND[0],
        band_high: float = DEFAULT_BAND[1],
        n: int = 1,
        tokens: int = 60,
        seed: int = 0,
        greedy: bool = False,
        method: str = AUTO,
        where: str = EVERYWHERE,
        mix: str = "",
    ) -> Iterator[dict]:
        """The next answers of a conversation by up to four voices; each item holds all texts so far, the last
        one each text's health too.

        Args:
            messages: What was said, each with a role (system, user or assistant) and a content.
            voices: Who answers, base, steered or RUN/ROUND, a healed round; base when none.
            alpha: Dose of the steered voice in units of c*.
            trait: Name of the axis to move along, see describe.
            band_low: Lower end of the steered layers, as a share of depth from 0 to 1.
            band_high: Upper end of the steered layers, as a share of depth from 0 to 1.
            n: How many answers each voice gives.
            tokens: Longest answer, in tokens.
            seed: Of the random numbers that answers of one number share.
            greedy: Always take the likeliest token.
            method: How the vector is extracted, see describe.
            where: Which tokens are steered, as in steer.
            mix: Instead of the trait's vector, as in steer.
        """
        names = voices or [BASE]
        said = tuple(build(Voice, messages=messages, **read_voice(name, alpha)) for name in names)
        sample = build(SampleSettings, max_new_tokens=tokens, seed=seed, greedy=greedy)
        request = build(
            TalkRequest, voices=said, n=n, sample=sample, trait=trait, band=(band_low, band_high),
            method=method, where=where, mix=mix,
        )  # fmt: skip
        with _session(self._engine) as session:
            for frame in self._engine.talk(request, session=session):
                yield {
                    "answers": [
                        [{"text": one.text, "health": one.health and asdict(one.health)} for one in some]
                        for some in frame.voices
                    ],
                    "done": frame.done, "together": frame.together, "message": frame.message,
                }  # fmt: skip

    def profile(
        self,
        prompt: str,
        alpha: float = 1.0,
        trait: str = DEFAULT_TRAIT,
        band_low: float = DEFAULT_BAND[0],
        band_high: float = DEFAULT_BAND[1],
        method: str = AUTO,
        mix: str = "",
    ) -> dict:
        """The seven foundations, or the poles of a trait measured on its own axis, for a prompt taken as a
        vignette, base and steered; base with its agreement over the bundled vignettes, where it has one.

        Args:
            prompt: The vignette.
            alpha: Dose in units of c*.
            trait: Name of the axis to move along.
            band_low: Lower end of the steered layers, as a share of depth.
            band_high: Upper end of the steered layers, as a share of depth.
            method: How the vector is extracted.
            mix: Instead of the trait's vector, as in steer.
        """
        band = (band_low, band_high)
        request = build(
            SteerRequest, prompt=prompt, alpha=alpha, trait=trait, band=band, method=method, mix=mix
        )
        base, steered = self._engine.profile(request)
        return {
            name: {"p": found.p, "coherence": found.coherence, "frame": found.frame}
            | {"agreement": found.agreement.value}
            for name, found in (("base", base), ("steered", steered))
        }

    def sweep(
        self,
        alphas: list[float],
        trait: str = DEFAULT_TRAIT,
        band_low: float = DEFAULT_BAND[0],
        band_high: float = DEFAULT_BAND[1],
        n_vignettes: int | None = None,
        tokens: int = 60,
        seed: int = 0,
        method: str = AUTO,
        greedy: bool = False,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        controls: int = 0,
        where: str = EVERYWHERE,
        mix: str = "",
    ) -> Iterator[dict]:
        """What each dose does to profile, coherence and text; each item holds the rows so far.

        Args:
            alphas: Doses in units of c*, at most 64.
            trait: Name of the axis to move along.
            band_low: Lower end of the steered layers, as a share of depth.
            band_high: Upper end of the steered layers, as a share of depth.
            n_vignettes: How many of the bundled vignettes; all when none.
            tokens: Length of the free answers.
            seed: Of the free answers.
            method: How the vector is extracted.
            greedy: Always take the likeliest token.
            temperature: Of the free answers, 0 is greedy; the model's own when none.
            top_p: Share of the probability that is drawn from, 1 is all of it; the model's own when none.
            top_k: How many tokens are drawn from, 0 is all of them; the model's own when none.
            controls: How many random directions of one nat are measured beside it.
            where: Which tokens of the free answers are steered, as in steer.
            mix: Instead of the trait's vector, as in steer; a row is added at the dose of one nat, one_nat.
        """
        drawn = {"greedy": greedy, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        request = build(
            DoseRequest,
            alphas=tuple(alphas),
            trait=trait,
            band=(band_low, band_high),
            n_vignettes=n_vignettes,
            sample=build(SampleSettings, max_new_tokens=tokens, seed=seed, **drawn),
            method=method,
            controls=controls,
            where=where,
            mix=mix,
        )
        with _session(self._engine) as session:
            for found in self._engine.dose(request, session=session):
                held = found.controls and asdict(found.controls)
                rows = [_row(row) for row in found.rows]
                yield {"done": found.share, "rows": rows, "controls": held, "one_nat": found.nat}

    def effect(
        self,
        trait: str = DEFAULT_TRAIT,
        band_low: float = DEFAULT_BAND[0],
        band_high: float = DEFAULT_BAND[1],
        method: str = AUTO,
        controls: int = 8,
        mix: str = "",
    ) -> Iterator[dict]:
        """What a vector or a mix does at its c*: all foundations, words and answers, beside its controls.
        Each item before the last one says what is being measured.

        Args:
            trait: Name of the axis to move along.
            band_low: Lower end of the steered layers, as a share of depth.
            band_high: Upper end of the steered layers, as a share of depth.
            method: How the vector is extracted.
            controls: How many random directions of the same KL are measured beside it.
            mix: Instead of the trait's vector, as in steer.
        """
        band = (band_low, band_high)
        request = build(DoseRequest, trait=trait, band=band, method=method, controls=controls, mix=mix)
        found = ""
        with _session(self._engine) as session:
            for found in self._engine.effect(request, session=session):
                if isinstance(found, str):
                    yield {"measuring": found}
        if isinstance(found, str):
            raise SettingsError("The effect was stopped before it was measured: ask again.")
        yield asdict(found) | {"movement": found.movement, "as_far": found.as_far}


def _row(row: Any) -> dict[str, Any]:
    """A dose row without the scores of single vignettes."""
    found = asdict(row)
    profile = found.pop("profile")
    return {**found, "text_verdict": row.verdict, "p": profile["p"] if profile else None}


def _frame(frame: Any) -> dict[str, Any]:
    """A moment of a pair as texts."""
    return {
        "base": "".join(token.text for token in frame.base),
        "steered": "".join(token.text for token in frame.steered),
        "done": frame.done,
        "c_star": frame.c_star,
        "dose_nats": frame.dose_nats,
        "dose_beyond": frame.dose_beyond,
        "health": None if frame.health is None else asdict(frame.health),
        "base_health": None if frame.base_health is None else asdict(frame.base_health),
        "shares": [token.steered for token in frame.steered],
        "carries": {
            name: [token.carries for token in written]
            for name, written in (("base", frame.base), ("steered", frame.steered))
        },
        "message": frame.message,
    }
