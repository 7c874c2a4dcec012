"""Records to text and HTML, pure. Everything a model or a person wrote goes through `esc`."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import get_args

from components.words import what_is
from steer_heal.config import EVERYWHERE, THRESHOLDS, gate_in_words, steered_share
from steer_heal.records import (
    Agreement,
    ListedModel,
    ModelInfo,
    Profile,
    SteerFrame,
    TextHealth,
    TextWord,
    Token,
    Trait,
)

VERDICTS: tuple[str, ...] = get_args(TextWord)
KL_EDGES = (0.1, 0.3, 1.0, 2.0, 4.0)
TRAIT_EDGES = (0.5, 1.0, 2.0, 4.0)
BROKE = (
    "The engine failed at this; the terminal says why. Change something and try again, or restart the app."
)
UNGATED = "with every token steered, as c* and random directions are, which it is held against"
"""How a trait's movement is measured whatever the gate."""
STAGE_WORDS = {"base": "Base", "steered": "Steered", "healed": "Healed"}


def esc(text: object) -> str:
    """`text` as HTML text, quotes included, so that it is safe in an attribute too; half a character, which
    could not be sent, as a question mark."""
    return escape(str(text).encode(errors="replace").decode(), quote=True)


def count(n: int) -> str:
    """A number of parameters in words: 3.0 M, 1.00 B."""
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n:,}"


def number(value: float | None, digits: int = 3) -> str:
    """A fixed-point number, or an en dash for none and for what is not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def ahead(n: int) -> str:
    """How many requests."""
    return "one request" if n == 1 else f"{n} requests"


def header(info: ModelInfo, more: str = "") -> str:
    """What is loaded, named for what it is; `more` is HTML beside it."""
    shape = (
        f"{count(info.n_parameters)} parameters · {info.n_layers} layers × {info.width} · "
        f"{esc(info.dtype)} on {esc(info.device)}"
    )
    what = f"<b>{esc(info.name)}</b> · {esc(info.architecture)}"
    model = f'<div class="sh-model"><span>{what}</span><span class="sh-dim">{shape}</span></div>'
    return f'<header class="sh-header"><h1>Steer &amp; Heal</h1>{model}{note(info.note)}{more}</header>'


def models(rows: Sequence[ListedModel]) -> str:
    """The models that can be chosen: what each is, and how large, or how to get it."""
    lines = (
        f"<li><b>{esc(row.name)}</b> · {esc(row.about)} · "
        + (f"here, {row.n_bytes / 1e6:,.0f} MB" if row.is_here else f"not here: {esc(row.get)}")
        + "</li>"
        for row in rows
    )
    return f'<ul class="sh-dim">{"".join(lines)}</ul>'


def heading(title: str, about: str) -> str:
    """A panel's title and one line about it (our own words, trusted)."""
    return f'<div class="sh-heading"><h2>{title}</h2><span class="sh-dim">{about}</span></div>'


def error(message: str) -> str:
    """One clear sentence, shown where the work would have been."""
    return f'<div class="sh-error" role="alert">{esc(message)}</div>'


def empty(said: str) -> str:
    """What to do where there is nothing yet (our own words, trusted)."""
    return f'<div class="sh-empty">{said}</div>'


def note(message: str) -> str:
    return f'<div class="sh-note">{esc(message)}</div>' if message else ""


def tr(*cells: object) -> str:
    """A row of a table; the cells are HTML."""
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def table(names: Iterable[str], rows: Iterable[str], more: str = "") -> str:
    """A table of such rows; the columns' names are HTML, `more` is a class."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<table class="sh-table {more}">{body}</table>'


def progress(share: float) -> str:
    """A bar of which this share is done."""
    done = 100 * min(1.0, max(0.0, share))
    return (
        f'<div class="sh-progress" role="progressbar" aria-valuenow="{done:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100"><div style="width:{done:.1f}%"></div></div>'
    )


def duration(seconds: float | None) -> str:
    """Seconds in words: 8 s, 2 min 5 s, 3 h 10 min; an en dash for none."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


# ---- the two answers --------------------------------------------------------------------------------------


def kl_bucket(kl: float) -> int:
    """Which shade a token gets: the number of `KL_EDGES` it reaches."""
    return sum(kl >= edge for edge in KL_EDGES)


def made(trait: Trait) -> str:
    """Under the button that made a trait: what comes next, and the pairs that it is measured by."""
    said = note(f"{trait.title} is chosen; its c* is measured, then the answer below begins.")
    if not trait.statements:
        return said
    rows = (tr(esc(plus), esc(minus)) for plus, minus in trait.statements)
    pairs = table(map(esc, trait.target), rows)
    about = "It is measured by how likely the model is to say the left and not the right"
    return f"{said}<details><summary>{about}</summary>{pairs}</details>"


def trait_bucket(carries: float) -> str:
    """Which shade what a token carries gets: its sign and the number of `TRAIT_EDGES` that it reaches."""
    size = sum(abs(carries) >= edge for edge in TRAIT_EDGES)
    return f"{'p' if carries > 0 else 'n'}{size}" if size else ""


def legend() -> str:
    """The shades of both texts: KL in nats, or what a token carries of the trait, whichever is chosen."""
    low = ("0", *(f"{edge:g}" for edge in KL_EDGES))
    names = [f"{a}–{b}" for a, b in pairwise(low)] + [f"≥ {KL_EDGES[-1]:g}"]
    chips = "".join(f'<span class="sh-t k{i}">{name}</span>' for i, name in enumerate(names))
    ends = [*(-edge for edge in reversed(TRAIT_EDGES)), 0.0, *TRAIT_EDGES]
    signed = "".join(f'<span class="sh-t {trait_bucket(end)}">{end:+g}</span>' for end in ends)
    more = '<span class="sh-marked"> · <span class="sh-at">underlined</span>: steered itself</span>'
    kl = f"KL(steered ‖ base), nats per token{what_is('nats')}: {chips} · point at a token for more{more}"
    carried = f"of the trait, in spreads of neutral text{what_is('carries')}: {signed} · point for more{more}"
    return "".join(
        f'<div class="sh-legend sh-dim sh-of-{by}">{said}</div>'
        for by, said in (("kl", kl), ("trait", f"what a token carries {carried}"))
    )


def tooltip(token: Token) -> str:
    """What hovering a token says: what it carries of the trait; of a steered one KL, its probability under
    both, and what base preferred."""
    lines = [f"p {number(token.p)}"]
    if token.kl is not None:
        both = f"p steered {number(token.p)}, base {number(token.p_base)}"
        lines = [f"KL {number(token.kl, 2)} nats", both]
    if token.carries is not None:
        lines.insert(1, f"carries {token.carries:+.1f} of the trait, in spreads of neutral text")
    if token.base_top:
        top = ", ".join(f"{a.text!r} {number(a.p_base, 2)}" for a in token.base_top)
        lines.append(f"base preferred {top}")
    if token.share is not None:
        lines.append(f"steered with {token.share:.0%} of the dose" if token.share else "itself not steered")
    return "\n".join(lines)


def _shades(token: Token) -> str:
    kl = "" if token.kl is None else f"k{kl_bucket(token.kl)}"
    carries = "" if token.carries is None else trait_bucket(token.carries)
    return " ".join(filter(None, ("sh-t", kl, carries, "sh-at" if token.share else "")))


def tokens(written: Sequence[Token]) -> str:
    """The text; tokens with a KL, or that are told what they carry, are shaded by either and say more when
    pointed at. Those that are steered are underlined where others are not."""
    return "".join(
        esc(t.text)
        if t.kl is None and t.carries is None
        else f'<span class="{_shades(t)}" title="{esc(tooltip(t))}">{esc(t.text)}</span>'
        for t in written
    )


def answer(written: Sequence[Token], *, done: bool, empty: str = "…") -> str:
    """One of the two answers, with a cursor while it is being written."""
    if not any(token.text for token in written):
        said = "(no text: the answer ended at once)" if written and done else empty
        return f'<span class="sh-dim">{esc(said)}</span>'
    return tokens(written) + ("" if done else '<span class="sh-cursor"></span>')


def stale(written: Sequence[Token]) -> str:
    """The answer to what was asked before, dimmed."""
    return f'<div class="sh-stale">{tokens(written)}</div>'


def status(frame: SteerFrame) -> str:
    """Where the request stands, in one line."""
    n, state = len(frame.steered), "done" if frame.done else "writing"
    rate = f" · {n / frame.seconds:.0f} tokens/s" if n and frame.seconds > 0 else ""
    if frame.done:
        text = f"{frame.message or 'done:'} {n} tokens in {frame.seconds:.1f} s"
    elif frame.message:
        text = frame.message + (f" · {frame.seconds:.0f} s so far" if frame.seconds >= 1 else "")
    elif frame.waiting and not n:
        text = f"waiting for {ahead(frame.waiting)} ahead"
    else:
        text = f"writing: {n} tokens{rate}"
    return f'<span class="sh-status sh-{state}">{esc(text)}</span>'


# ---- how healthy, how far ---------------------------------------------------------------------------------


READINGS = (
    ("perplexity", "perplexity under base", 1, "", "above"),
    ("relevance", "relevance", 2, " nats", "below"),
    ("variety", "variety", 2, "", "below"),
    ("repetition", "repetition", 2, "", "above"),
)
"""What is read of a text: its name, what it is called, digits, unit, and which side of a limit is bad."""


def _readings(health: TextHealth, base: TextHealth | None) -> Iterator[tuple[str, str, str]]:
    """Each reading's name; what it is, with base's own beside it and where the word changes; and, where it
    made the text's word what it is, its figure and that limit. Of a broken text only what breaks it has."""
    for name, called, digits, unit, bad in READINGS:
        value, own = getattr(health, name), getattr(base, name, None)
        if value is None:
            continue
        said = f"{called} <b>{number(value, digits)}</b>{unit}"
        said += "" if own is None else f" (base's own {number(own, 2)})"
        times, of = "", ""
        if hasattr(health, f"{name}_ratio"):
            value, times, of = getattr(health, f"{name}_ratio"), "×", "× base's own"
            said += "" if value is None else f", <b>{number(value, 1)}</b>× base's own"
        limits = {word: getattr(THRESHOLDS, f"{name}_{word}", None) for word in ("damaged", "broken")}
        ends = [f"{word} {bad} {limit:g}{times}" for word, limit in limits.items() if limit is not None]
        limit, why = limits.get(health.verdict), ""
        if value is not None and limit is not None and (value > limit if bad == "above" else value < limit):
            why = f"{name} {value:.2f}{of}, limit {limit:g}{times}"
        yield name, f"{said}: {', '.join(ends)}", why


def _answers(profiles: tuple[Profile, Profile]) -> str:
    """The answers' word with what it is by; nothing where they judge nothing."""
    base, steered = profiles
    word = steered.answers_against(base)
    if word is None or not base.coherence or steered.coherence is None:
        return ""
    ratio = number(steered.coherence / base.coherence, 2)
    return (
        f"answers <b>{word}</b>: their mass is <b>{ratio}</b>× base's "
        f"(weakened below {THRESHOLDS.mass_weakened:g}, lost below {THRESHOLDS.mass_lost:g})"
    )


def text_word(health: TextHealth | None) -> str:
    """One word for a text, and by which reading; nothing where it was not judged, as there is too little of
    it."""
    if health is None or not (word := health.verdict):
        return ""
    why = "; ".join(why for *_, why in _readings(health, None) if why)
    said = f'<span class="sh-why sh-dim" title="{esc(why)}">{esc(why)}</span>' if why else ""
    return said + short_word(word, why)


def short_word(word: str, why: str = "") -> str:
    """A text's word alone, "loops" among them, which is one way to be broken; nothing for none."""
    kind, said = ("broken", "broken: loops") if word == "loops" else (word, word)
    return f'<span class="sh-word sh-{kind}" title="{esc(why)}">{esc(said)}</span>' if word else ""


def measures(frame: SteerFrame, profiles: tuple[Profile, Profile] | None) -> str:
    """Every quantity and threshold that made the steered text's word, and then the answers'."""
    lines = []
    if frame.health is not None:
        for name, said, why in _readings(frame.health, frame.base_health):
            lines.append((f"<mark>{said}</mark>" if why else said) + what_is(name))
        if frame.health.kl_p95 is not None:
            lines.append(f"95th percentile of KL <b>{number(frame.health.kl_p95, 2)}</b> nats")
    if profiles is not None and (said := _answers(profiles)):
        lines.append(said + what_is("answer mass"))
    if not lines:
        return '<div class="sh-verdict sh-dim">The measures appear with the first tokens.</div>'
    return '<ul class="sh-verdict">' + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def worth(agreement: Agreement, frame: str) -> str:
    """What a profile is worth, in one small line."""
    said = agreement.sentence(frame)
    return f'<div class="sh-dim sh-worth">{esc(said)}{what_is("agreement")}</div>' if said else ""


def dose(alpha: float, frame: SteerFrame | None = None, where: str = EVERYWHERE, mix: str = "") -> str:
    """What alpha means here: nats, the share of the residual's norm, c*, for which tokens it is, and of which
    mix."""
    parts = [f"alpha {alpha:g}"]
    if frame is not None and frame.dose_nats is not None:
        own = mix or where != EVERYWHERE
        measured = "more than" if frame.dose_beyond else "measured" if own else "about"
        parts.append(f"{measured} {number(frame.dose_nats, 2)} nats")
    if frame is not None and frame.dose_fraction is not None:
        parts.append(f"{100 * frame.dose_fraction:.0f}% of the residual's norm")
    if frame is not None and frame.c_star is not None:
        parts.append(f"c* = {number(frame.c_star, 1)}{what_is('c*')}")
    if where != EVERYWHERE:
        of_prompt = ' class="sh-at-prompt"' if steered_share(where, -1) else ""
        parts.append(f"<span{of_prompt}>{esc(gate_in_words(where))}</span>")
    if mix:  # last, as a line has room for so much and no more
        parts.append(f"of {esc(mix)}")
    return f'<div class="sh-dim sh-dose">{" · ".join(parts)}</div>'


def bars(profiles: Mapping[str, Mapping[str, float]]) -> str:
    """The seven foundations, or a trait's poles, as bars, one a stage, and the change against base in words.

    `profiles` maps base, steered, healed to name -> probability; the widest bar fills its track.
    """
    if not profiles:
        return '<div class="sh-dim">What the trait is measured on appears when the model has answered.</div>'
    top = max((p for profile in profiles.values() for p in profile.values()), default=1.0) or 1.0
    base = profiles.get("base", {})
    rows = []
    names = dict.fromkeys(name for profile in profiles.values() for name in profile)
    for name in names:
        lines = []
        for stage, profile in profiles.items():
            value = profile.get(name, 0.0)
            change = "" if stage == "base" or name not in base else f"{value - base[name]:+.3f}"
            width = 100 * value / top
            bar = f'<div class="sh-bar sh-bg-{esc(stage)}" style="width:{width:.1f}%"></div>'
            lines.append(
                f'<div class="sh-track">{bar}</div>'
                f'<span class="sh-num">{number(value)}</span><span class="sh-num sh-dim">{change}</span>'
            )
        rows.append(f'<div class="sh-fname">{esc(name)}</div><div class="sh-lines">{"".join(lines)}</div>')
    key = " ".join(
        f'<span class="sh-key sh-fg-{esc(s)}">■ {STAGE_WORDS.get(s, esc(s))}</span>' for s in profiles
    )
    help_ = what_is("foundations" if "Care" in names else "poles")
    key = f'<div class="sh-bars-key sh-dim">{key} · probability, change{help_}</div>'
    return f'{key}<div class="sh-bars">{"".join(rows)}</div>'
