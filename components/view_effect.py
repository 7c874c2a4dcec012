"""What a vector does, as HTML: each foundation or pole beside its controls, words, two answers. Pure."""

from components.view import esc, number, table, tr
from steer_heal.records import Effect

LEGEND = (
    "bar: 95% interval of the movement from base · grey: what random directions of the same KL do · "
    "◆ the persona told as text"
)


def panel(found: Effect) -> str:
    """The whole panel."""
    moved = [end for pair in found.intervals.values() for end in pair]
    moved += [shift for name in found.steered for shift in _controls(found, name)]
    reach = max(map(abs, moved), default=0.0)
    before, after = (number(one.value, 2) for one in (found.base_agreement, found.agreement))
    worth = f"agreement {before} on base, {after} steered"
    if found.base_agreement.value is None:
        worth = esc(found.base_agreement.sentence())
    kind = "foundation" if "Care" in found.steered else "pole"
    rows = (_row(found, name, reach or 1.0) for name in found.steered)
    return (
        f'<div class="sh-effect"><p><b>{esc(found.sentence())}</b></p>'
        f'<p class="sh-dim">{worth}, frame {esc(found.frame)}, {found.n_vignettes} vignettes · {LEGEND}</p>'
        f"{table((kind, 'base', 'steered', 'movement'), rows)}"
        f"{_words(found)}{_answers(found)}</div>"
    )


def _controls(found: Effect, name: str) -> list[float]:
    """How far each random direction, and last the persona, moves a foundation from base."""
    held = found.controls
    told = [] if held.persona is None else [held.persona]
    return [p[name] - held.base[name] for p in (*held.random, *told)]


def _row(found: Effect, name: str, reach: float) -> str:
    base, steered = found.controls.base[name], found.steered[name]
    shifts = _controls(found, name)
    random = shifts[: len(found.controls.random)]
    low, high = found.intervals.get(name, (steered - base, steered - base))
    marks = _span("sh-random", min(random), max(random), reach) if random else ""
    marks += _span("sh-moved", low, high, reach)
    if found.controls.persona is not None:
        marks += f'<span class="sh-persona" style="left:{_place(shifts[-1], reach):.1f}%">◆</span>'
    aimed = {1: " ↑", -1: " ↓"}.get(found.target.get(name, 0), "")
    return (
        f"<tr><th>{esc(name)}{aimed}</th><td>{number(base)}</td><td>{number(steered)}</td>"
        f'<td title="{low:+.3f} to {high:+.3f}"><div class="sh-track">{marks}</div></td></tr>'
    )


def _place(shift: float, reach: float) -> float:
    """Where a shift lies on the track, in per cent; no movement is the middle."""
    return 50 + 48 * shift / reach


def _span(name: str, low: float, high: float, reach: float) -> str:
    left, right = _place(low, reach), _place(high, reach)
    return f'<span class="{name}" style="left:{left:.1f}%;width:{max(right - left, 0.6):.1f}%"></span>'


def _words(found: Effect) -> str:
    if not found.promoted:
        return ""
    promoted, demoted = (", ".join(map(esc, words)) for words in (found.promoted, found.demoted))
    return f"<p>makes likelier: <b>{promoted}</b><br>makes less likely: <b>{demoted}</b></p>"


def _answers(found: Effect) -> str:
    rows = (tr(*map(esc, (one.prompt, one.base, one.steered))) for one in found.answers)
    return table(("asked", "base", "steered"), rows, "sh-text")
