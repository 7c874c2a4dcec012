"""Runs, rounds and completions as HTML, pure. Everything a model or a person wrote goes through `esc`."""

import json
import math
import re
import time
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from components.view import bars, duration, empty, esc, number, progress, short_word, table, tr, worth
from components.words import what_is
from steer_heal.config import HealThresholds, describe_settings
from steer_heal.records import CompletionRow, RoundDetail, RunRow

STAGES = {
    "base": "measuring the base",
    "extract": "finding the direction",
    "calibrate": "finding the dose of one nat, and what steering alone does",
    "generate": "writing answers under steering",
    "filter": "keeping what reads well",
    "train": "training them in",
    "evaluate": "measuring what came out",
}
"""What a run does, by the name of its stage."""
ACTIONS = {
    "queued": ("pause", "cancel"),
    "running": ("pause", "cancel"),
    "paused": ("resume", "cancel"),
    "interrupted": ("resume",),
    "cancelled": ("resume",),
    "failed": ("resume",),
}
"""What can be done with a run, by its status; any run can be cloned."""
LABELS = {"anyway": "Heal all the same"}
"""What a button says that is not named as what it does."""
RANDOM = "no better than random"
WORDS = (
    "collapsed", "cannot answer", "moved the other way", "too little trait kept", RANDOM, "not specific",
    "kept but costly", "healed",
)  # fmt: skip
"""The words of a round's headline."""
SAID = "|".join((*WORDS, "no trait kept", "costly"))
"""Those that a run's message may hold; the last two of older runs."""
MAX_COMPLETIONS = 300
MAX_CHIPS = 16
EMPTY_RUNS = empty("No runs yet: press <b>Heal</b> and its rounds appear on the map.")
EMPTY_ROUND = empty("Click a node on the map, or a run in the table, to open a round here.")


def when(seconds: float | None) -> str:
    """Local date and time to the minute."""
    return "–" if seconds is None else time.strftime("%d %b %H:%M", time.localtime(seconds))


def about(seconds: float | None) -> str:
    """A time left in words that do not pretend to be exact; nothing for none."""
    if seconds is None:
        return ""
    return (
        " · less than a minute left"
        if seconds < 60
        else f" · about {duration(60 * round(seconds / 60))} left"
    )


def _progress(run: RunRow) -> str:
    if run.status not in ("running", "queued", "paused"):
        return f'<span class="sh-{esc(run.status)}">{esc(run.status)}</span>'
    stage = STAGES.get(run.stage, run.stage)
    doing = f"round {min(run.round + 1, run.rounds)} of {run.rounds}: {stage}" if run.stage else run.status
    if run.status == "paused" and run.stage:
        doing = f"paused in {doing}"
    if run.total and run.done is not None:
        doing += f", {run.done:g} of {run.total:g}" + (f", {run.rate:.2g} a second" if run.rate else "")
    return f'{progress(run.progress)}<span class="sh-dim">{esc(doing)}{esc(about(run.eta))}</span>'


def card(run: RunRow, letter: str, last: str) -> str:
    """A run that goes on, under the button that started it: its stage, how far, what it last said."""
    acts = "".join(_button(action, run) for action in ACTIONS[run.status])
    said = f'<p class="sh-dim">healed so far: “{esc(last[:220])}”</p>' if last else ""
    top = f'<div class="sh-card-top"><span>{_called(run, letter)}</span>{acts}</div>'
    return f'<div class="sh-card">{top}{_progress(run)}{said}</div>'


def ended_card(run: RunRow, letter: str) -> str:
    """A run of this browser's that has ended, where its button was pressed: what came of it."""
    top = f"<span>{_called(run, letter)}: {esc(run.status)}</span>{_rounds(run)}"
    said = f"<p>{said_of(run.message)}</p>" if run.message else ""
    said += _button("anyway", run) if run.status == "failed" and RANDOM in run.message else ""
    return f'<div class="sh-card"><div class="sh-card-top">{top}</div>{said}</div>'


def _called(run: RunRow, letter: str) -> str:
    """A run by its letter and name, and by its mix where that is not its name."""
    mix = "" if run.mix in ("", run.name) else f' <span class="sh-dim">{esc(run.mix)}</span>'
    return f"<b>{letter}</b> {esc(run.name or run.run_id)}{mix}"


def _headline_word(message: str) -> str:
    """The word of the headline that a run's message ends with; nothing where it has none."""
    found = re.search(rf"round \d+ ({SAID}):", message)
    return f' <span class="sh-tag">{found[1]}</span>' if found else ""


def said_of(message: str) -> str:
    """What a run says of itself, its headline's word in bold."""
    return re.sub(rf"\b({SAID}):", r"<b>\1</b>:", esc(message))


def undo(run_id: str) -> str:
    """After a run was deleted."""
    again = f'<button class="sh-button" data-action="restore" data-run="{esc(run_id)}">Undo</button>'
    return f'<div class="sh-note">Deleted. {again} within a minute.</div>'


def older(n: int, left_out: bool) -> str:
    """How many older runs are left out of the table, and how to see them or not; nothing where there are
    none."""
    says = f"show {n:,} older" if left_out else "leave out older ones"
    return f'<p><button class="sh-link" data-action="older">{says}</button></p>' if n else ""


def hidden(runs: Sequence[RunRow], left_out: bool) -> str:
    """How many runs are hidden, and how to see them or not; nothing where there are none."""
    n = sum(run.hidden for run in runs)
    says = f"show {n} hidden" if left_out else "leave out hidden ones"
    return f'<button class="sh-link" data-action="all">{says}</button>' if n else ""


def _button(action: str, run: RunRow) -> str:
    label, name = LABELS.get(action, action.capitalize()), esc(run.name or run.run_id)
    asks = {
        "rename": f'data-ask="A name for this run" data-now="{name}"',
        "delete": f'data-sure="Delete {name} and its folder, with what it trained?"',
        "hide": f'data-hidden="{str(run.hidden).lower()}"',
    }.get(action, "")
    label = "Unhide" if action == "hide" and run.hidden else label
    return (
        f'<button class="sh-button" data-action="{action}" data-run="{esc(run.run_id)}" {asks} '
        f'aria-label="{label} {esc(run.name or run.run_id)}">{label}</button>'
    )


def letters(runs: Sequence[RunRow]) -> dict[str, str]:
    """A letter for each run, the oldest first, so that a run keeps its own: A to Z, AA to ZZ, AAA."""
    begun = {r.run_id: math.inf if r.started_at is None else r.started_at for r in runs}
    oldest = sorted(runs, key=lambda r: (not r.is_example, begun[r.run_id], r.run_id))
    return {r.run_id: _letter(i) for i, r in enumerate(oldest)}


def _letter(place: int) -> str:
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(65 + place % 26)


def map_key(
    runs: Sequence[RunRow], shown: Collection[str], marks: Mapping[str, str], model: str, caption: str
) -> str:
    """Under the map: what it means, the runs by their letters, on it or off, and its downloads."""
    here = [r for r in runs if r.model == model or r.run_id in shown]
    tags = {r.run_id: f' <span class="sh-tag">{esc(r.model)}</span>' for r in here if r.model != model}
    chips = "".join(
        f'<button class="sh-chip" data-action="show" data-run="{esc(r.run_id)}" aria-pressed="'
        f'{str(r.run_id in shown).lower()}" title="{esc(r.name or r.run_id)}: on the map or off">'
        f"<b>{marks[r.run_id]}</b> {esc(r.name or r.run_id)}{tags.get(r.run_id, '')}</button>"
        for r in here[:MAX_CHIPS]
    )
    saves = " · ".join(
        f'<button class="sh-link" data-download="{kind}">{kind.upper()}</button>'
        for kind in ("svg", "png", "csv")
    )
    hollow = "; hollow: of another model" if any(r.run_id in shown and r.model != model for r in runs) else ""
    about = f"{esc(caption)}; ◆ steered, ■ healed with its round; fainter: less coherent"
    about += f"{what_is('coherent')}; grey: random directions{what_is('random directions')}{hollow}"
    return (
        f'<div class="sh-dim sh-caption">{about} · save as {saves} · '
        '<button class="sh-link" data-copy>copy a link to this view</button></div>'
        f'<div class="sh-chips">{chips}</div>'
    )


def _run(run: RunRow, shown: bool, letter: str, trait: str) -> str:
    name = esc(run.name or run.run_id)
    about = f"{run.mix}, measured on {trait}" if run.mix else trait
    example = '<span class="sh-tag">example</span>' if run.is_example else ""
    message = f'<div class="sh-dim">{said_of(run.message)}</div>' if run.message else ""
    actions = () if run.is_example else ACTIONS.get(run.status, ())
    more = ("hide",) if run.is_example else ("rename", "hide")
    more += () if run.is_example or run.status in ("running", "paused") else ("delete",)
    button = " ".join(_button(action, run) for action in (*actions, "clone", *more))
    check = (
        f'<button class="sh-check" role="checkbox" aria-checked="{str(shown).lower()}" data-action="show" '
        f'data-run="{esc(run.run_id)}" aria-label="Show {name} on the map"></button>'
    )
    opens = (
        f'<button class="sh-link" data-action="open" data-run="{esc(run.run_id)}" data-round="{run.round}" '
        f'title="Open its last round">{name}</button>'
    )
    cells = (
        check,
        f"<b>{letter}</b> {opens}{example}{message}",
        f'{esc(run.model)}<div class="sh-dim">{esc(about)}</div>',
        str(run.seed),
        _progress(run) + _headline_word(run.message),
        f"{run.round} / {run.rounds}",
        number(run.retention, 2),
        when(run.started_at),
        button,
    )
    return f'<tr data-run="{esc(run.run_id)}">' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def runs_table(
    runs: Sequence[RunRow], shown: Collection[str], marks: Mapping[str, str], traits: Mapping[str, str]
) -> str:
    """The table of runs: which are on the map, how far they are, and what can be done with them.

    `marks` has each run's letter, `traits` the title of each trait.
    """
    if not runs:
        return EMPTY_RUNS
    counted = (f"Rounds{what_is('round')}", f"Retention{what_is('retention')}")
    names = ("Map", "Run", "Model, trait", "Seed", "Status", *counted, "Started", "Actions")
    rows = (
        _run(run, run.run_id in shown, marks.get(run.run_id, ""), traits.get(run.trait, run.trait))
        for run in runs
    )
    return table(names, rows)


def setting_names(rows: Sequence[tuple[str, str, str]]) -> str:
    """Every setting of a run: its name, its default, what it is."""
    told = (tr(f"<code>{esc(name)}</code>", esc(default), esc(about)) for name, default, about in rows)
    return f'<div class="sh-scroll">{table(("Setting", "Default", "What it is"), told, "sh-text")}</div>'


# ---- one round --------------------------------------------------------------------------------------------


def round_head(detail: RoundDetail, run: RunRow | None) -> str:
    """A round in one line: what it kept and what it lost."""
    name = esc((run.name or run.run_id) if run else detail.run_id)
    example = '<span class="sh-tag">example</span>' if run and run.is_example else ""
    facts = [f"{stage} coherence <b>{number(value)}</b>" for stage, value in detail.coherence.items()]
    if detail.retention is not None:
        facts.insert(0, f"retention <b>{number(detail.retention, 2)}</b>{what_is('retention')}")
    if detail.made:
        facts.append(f"kept <b>{detail.kept}</b> of {detail.made} completions")
    if detail.c_star is not None:
        facts.append(f"c* <b>{number(detail.c_star, 1)}</b>")
    health = [
        f"{esc(k.replace('_', ' '))} <b>{number(v, 2)}</b>" for k, v in detail.text.items() if v is not None
    ]
    facts += [f"of sampled answers (medians; looping is a share): {', '.join(health)}"] if health else []
    facts += [said] if (said := _looping(detail)) else []
    if mix := detail.settings.get("mix"):
        facts.append(f"of the mix {esc(mix)}")
    facts.append(f"run {esc(detail.run_id)}")
    which = "before the first round" if detail.round == 0 else f"round {detail.round}"
    said = " · ".join(facts)
    top = f'<div class="sh-round"><h3>{name}{example} · {which}</h3>{_rounds(run, detail.round)}'
    return f'{top}{headline(detail.facts)}<p class="sh-dim">{said}</p></div>'


def _rounds(run: RunRow | None, shown: int | None = None) -> str:
    """The run's rounds, a button each, the one `shown` pressed."""
    if run is None or not run.round:
        return ""
    buttons = (
        f'<button class="sh-button" data-action="open" data-run="{esc(run.run_id)}" data-round="{n}" '
        f'aria-pressed="{str(n == shown).lower()}">{f"round {n}" if n else "base"}</button>'
        for n in range(run.round + 1)
    )
    talk = (
        f' <button class="sh-button" data-action="talk" data-run="{esc(run.run_id)}" '
        f'data-round="{shown}">talk to it</button>'
        if shown
        else ""
    )
    if run.is_example:
        talk = ' <span class="sh-dim">it came without its adapters: talk to a run of your own</span>'
    return f"<p>{' '.join(buttons)}{talk}</p>"


def headline(facts: Mapping[str, Any]) -> str:
    """A round's verdict in one line, what it was judged by beneath; nothing where there is none."""
    said = facts.get("headline")
    if not said:
        return ""
    abouts = {name: field.description for name, field in HealThresholds.model_fields.items()}
    limits = "".join(f"<li>{esc(abouts.get(k) or k)} {v:g}</li>" for k, v in said["thresholds"].items())
    beside = []
    if interval := facts.get("retention_interval"):
        beside.append(f"retention {interval[0]:.2f} to {interval[1]:.2f} (95% over vignettes)")
    if moved := (facts.get("differences") or {}).get("healed-steered"):
        beside.append(f"trait against steering alone {moved[0]:+.3f} ({moved[1]:+.3f} to {moved[2]:+.3f})")
    if facts.get("shift_cosine") is not None:
        beside.append(f"cosine with steering's shift {facts['shift_cosine']:.3f}")
    if facts.get("facts_kept") is not None:
        beside.append(f"facts kept {facts['facts_kept']:.0%}")
    if facts.get("neutral_kl") is not None:
        beside.append(f"KL from base on neutral prompts {facts['neutral_kl']:.2f} nats a token")
    return (
        f'<p class="sh-headline"><b>{esc(said["word"])}</b>: {esc(said["why"])}</p>'
        f'<p class="sh-dim">{esc(" · ".join(beside))}</p>'
        f'<details class="sh-dim"><summary>what it was judged by</summary><ul>{limits}</ul></details>'
    )


def profile_bars(detail: RoundDetail) -> str:
    """All seven foundations, or the trait's two poles, base beside steered beside healed."""
    shown = {s: detail.profiles[s] for s in ("base", "steered", "healed") if s in detail.profiles}
    lines = {stage: worth(detail.worth[stage], detail.frame) for stage in shown if stage in detail.worth}
    return bars(shown) + "".join(f"<div>{esc(stage)}: {line}</div>" for stage, line in lines.items() if line)


def answers(detail: RoundDetail) -> str:
    """What it says to the fixed prompts."""
    if not detail.answers:
        return empty("No answers to the fixed prompts were kept for this round.")
    keys = list(dict.fromkeys(key for row in detail.answers for key in row))
    keys.sort(key=lambda key: key != "prompt")
    rows = (
        tr(*(esc(row.get(key, "")) + short_word(words.get(key, "")) for key in keys))
        for row, words in zip_longest(detail.answers, detail.words, fillvalue={})
    )
    return table(map(esc, keys), rows, "sh-text")


def _looping(detail: RoundDetail) -> str:
    """How many of the printed answers loop, of each stage that has some."""
    stages = [
        stage for stage in ("base", "steered", "healed") if any(row.get(stage) for row in detail.answers)
    ]
    counts = (sum(words.get(stage) == "loops" for words in detail.words) for stage in stages)
    said = ", ".join(f"{stage} <b>{n}</b>" for stage, n in zip(stages, counts, strict=True))
    return f"of {len(detail.answers)} printed (greedy) answers loop: {said}" if detail.words else ""


def compare(one: RoundDetail, other: RoundDetail, names: tuple[str, str]) -> str:
    """Two rounds side by side: what they came to, the settings that differ, profiles, and what each says."""
    titles = [f"{esc(name)} · round {d.round}" for name, d in zip(names, (one, other), strict=True)]

    def rows(pairs: Sequence[tuple[str, object, object]]) -> list[str]:
        return [f"<tr><th>{esc(k)}</th><td>{esc(a)}</td><td>{esc(b)}</td></tr>" for k, a, b in pairs]

    def of(name: str, digits: int) -> tuple[str, str]:
        return number(one.facts.get(name), digits), number(other.facts.get(name), digits)

    heads = [d.facts.get("headline") or {} for d in (one, other)]
    facts = [
        ("headline", *(f"{h['word']}: {h['why']}" if h else "–" for h in heads)),
        ("retention", number(one.retention, 2), number(other.retention, 2)),
        ("right answers to facts, of base's", *of("facts_kept", 2)),
        ("KL from base on neutral prompts, nats a token", *of("neutral_kl", 2)),
        *(
            (f"{k.replace('_', ' ')} of sampled answers", number(v, 2), number(other.text.get(k), 2))
            for k, v in one.text.items()
        ),
        ("answers kept of those written", *(f"{d.kept} of {d.made}" for d in (one, other))),
    ]
    mine, theirs = flat(one.settings), flat(other.settings)
    abouts = {name: about for name, _, about in describe_settings()}
    differ = [
        (abouts.get(k, k), mine.get(k, "–"), theirs.get(k, "–"))
        for k in mine | theirs
        if mine.get(k) != theirs.get(k)
    ]
    profiles = "".join(
        f"<div><b>{title}</b>{profile_bars(d)}</div>" for title, d in zip(titles, (one, other), strict=True)
    )
    said = {row["prompt"]: row.get("healed", "") for row in other.answers}
    spoken = [(row["prompt"], row.get("healed", ""), said.get(row["prompt"], "–")) for row in one.answers]
    figures = table(("Figure or setting", *titles), rows([*facts, *differ]), "sh-text")
    answers = table(("asked", *titles), rows(spoken), "sh-text")
    return f'{figures}<div class="sh-two">{profiles}</div>{answers}'


def flat(values: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """Settings in settings by their dotted names; a run's own name is none of them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{under}{key}.") if isinstance(value, dict) else {under + key: value}
    return {key: value for key, value in found.items() if key != "name"}


def settings(detail: RoundDetail) -> str:
    """The run's settings: what each is, its value, its name; and whole, as JSON text."""
    abouts = {name: about for name, _, about in describe_settings()}
    rows = (
        tr(esc(abouts.get(k, k)), esc("null" if v is None else v), f"<code>{esc(k)}</code>")
        for k, v in flat(detail.settings).items()
    )
    whole = esc(json.dumps(detail.settings, indent=2, ensure_ascii=False))
    return (
        f'<div class="sh-scroll">{table(("What", "Value", "Name"), rows, "sh-text")}</div>'
        f'<details class="sh-dim"><summary>as JSON</summary><pre class="sh-settings">{whole}</pre></details>'
    )


def completions(rows: Sequence[CompletionRow], which: str = "all") -> str:
    """A round's completions: kept and dropped, with their scores and the reasons against them."""
    chosen = [r for r in rows if which == "all" or r.kept == (which == "kept")]
    if not chosen:
        word = "completions" if which == "all" else f"{which} completions"
        return empty(f"This round has no {word}: choose another round or another list.")
    body = []
    for row in chosen[:MAX_COMPLETIONS]:
        scores = ", ".join(f"{esc(k.replace('_', ' '))} {number(v, 2)}" for k, v in row.scores.items())
        mark = "kept" if row.kept else "dropped"
        reasons = f'<div class="sh-reason">{esc("; ".join(row.reasons))}</div>' if row.reasons else ""
        body.append(
            f'<tr class="sh-{mark}"><td>{mark}</td><td>{row.alpha:.2g}</td>'
            f'<td class="sh-dim">{esc(row.prompt)}</td>'
            f'<td>{esc(row.text)}{reasons}</td><td class="sh-dim">{scores}</td></tr>'
        )
    more = len(chosen) - MAX_COMPLETIONS
    rest = f'<div class="sh-dim">and {more} more, in the run\'s events.jsonl</div>' if more > 0 else ""
    names = ("", "alpha", "prompt", "completion", "scores")
    return f'<div class="sh-scroll">{table(names, body, "sh-text")}</div>{rest}'
