"""What sweeps found, as text and HTML, pure; and what a browser remembers of it."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from components.view import VERDICTS, ahead, esc, progress
from steer_heal.records import DoseRow, Sweep

Known = dict[str, list[list[Any]]]
ENDS = (-4.0, 4.0)
MAX_KNOWN = 24
UNKNOWN = "not measured yet: see Dose"
TIED = 0.03
"""Movements of the trait that are as good as equal."""
ROOM_FOR_A_WORD = 0.18
"""Share of the strip that a word needs."""


def working(share: float, doing: str, waiting: int = 0) -> str:
    """A bar and a line of what is being done, or for how many it waits."""
    if waiting:
        doing = f"waiting for {ahead(waiting)} ahead"
    return f'<div class="sh-working">{progress(share)}<span class="sh-dim">{esc(doing)}</span></div>'


def found(sweep: Sweep, target: dict[str, int]) -> str:
    """Where the text breaks, beside it the answers, and whether the trait moves further than controls do."""
    rows, at = sweep.rows, sweep.breaks
    top = max((row.alpha for row in rows), default=0.0)
    marks = [f"{word} from alpha {at[word]:g}" for word in ("damaged", "broken") if word in at]
    said = f"the text is {', '.join(marks)}" if marks else f"the text is fine up to alpha {top:g}"
    lost = [f"{word} from alpha {at[word]:g}" for word in ("weakened", "lost") if word in at]
    worth = sweep.reading
    if lost:
        said += f"; answers are {', '.join(lost)}"
    elif any(row.answers_verdict for row in rows):
        said += f"; answers are kept up to alpha {top:g}"
    elif worth is not None:
        said += f"; {worth.agreement.sentence(worth.frame)}"
    against = sweep.against(target)
    said += f"; {against}" if against else ""
    return f"{said}. Click the chart to steer at a dose; press Find which layers for those that do it."


def layers_found(cells: Sequence[DoseRow], layers: Callable[[tuple[float, float]], tuple[int, ...]]) -> str:
    """Which layers move the trait most at alpha 1, alone and three together, of those whose text is not
    broken there; nothing where no trait was measured."""
    at_1 = {layers(row.band): row for row in cells if row.alpha == 1.0 and row.trait_shift is not None}
    sound = {some: row.trait_shift or 0.0 for some, row in at_1.items() if row.verdict != "broken"}
    single = {some[0]: moved for some, moved in sound.items() if len(some) == 1}
    three = {some: moved for some, moved in sound.items() if len(some) > 1}
    said = ""
    if single:
        best = max(single, key=lambda layer: single[layer])
        near = [str(one) for one, by in sorted(single.items()) if one != best and by > single[best] - TIED]
        said = (
            f"At alpha 1 layer {best} alone moves the trait most: {single[best]:+.2f}, {at_1[best,].verdict}"
        )
        said += f"; within {TIED:g} of it: {', '.join(near)}" if near else ""
        said += ". "
    if three:
        some = max(three, key=lambda some: three[some])
        most = "do" if single else "move the trait most at alpha 1"
        said += f"Of neighbours together {some[0]} to {some[-1]} {most}: {three[some]:+.2f}, "
        said += f"{at_1[some].verdict}. "
    return said


# ---- the strip under the slider ---------------------------------------------------------------------------


def key(model: str, trait: str, low: float, high: float, method: str, prompt: str = "") -> str:
    """What a sweep is remembered by: also its prompt, where it is not over a set."""
    of = f"|{zlib.crc32(prompt.encode()):08x}" if prompt else ""
    return f"{model}|{trait}|{low:g}-{high:g}|{method}{of}"


def remembered(value: Any) -> Known:
    """`value` without whatever is not a list of (alpha, verdict): a browser may send anything."""
    if not isinstance(value, dict):
        return {}
    return {name: rows for name, rows in value.items() if isinstance(rows, list) and all(map(_sound, rows))}


def _sound(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) == 2
        and isinstance(row[0], int | float)
        and math.isfinite(row[0])
        and row[1] in VERDICTS
    )


def remember(value: Any, name: str, rows: Sequence[DoseRow]) -> Known:
    """`value` with a sweep's verdicts put last; the oldest are let go."""
    kept = {other: doses for other, doses in remembered(value).items() if other != name}
    kept[name] = [[row.alpha, row.verdict] for row in rows if row.verdict is not None]
    return dict(list(kept.items())[-MAX_KNOWN:])


def segments(doses: Sequence[Sequence[Any]]) -> list[tuple[float, float, str]]:
    """(from, to, verdict) along the slider; each dose speaks for what is nearer to it than to the next."""
    rising = sorted({float(alpha): str(verdict) for alpha, verdict in doses}.items())
    if len(rising) < 2:
        return []
    edges = [rising[0][0], *((a + b) / 2 for (a, _), (b, _) in pairwise(rising)), rising[-1][0]]
    pieces: list[tuple[float, float, str]] = []
    for (start, end), (_, verdict) in zip(pairwise(edges), rising, strict=True):
        start, end = max(start, ENDS[0]), min(end, ENDS[1])
        if pieces and pieces[-1][1:] == (start, verdict):
            pieces[-1] = (pieces[-1][0], end, verdict)
        elif start < end:
            pieces.append((start, end, verdict))
    return pieces


def strip(known: Mapping[str, Sequence[Sequence[Any]]], name: str) -> str:
    """What is known of each dose from -4 to 4: fine, damaged or broken, by colour, pattern and word."""
    pieces = segments(known.get(name, ()))
    if not pieces:
        return f'<div class="sh-strip"><span class="sh-unknown">{UNKNOWN}</span></div>'
    length = ENDS[1] - ENDS[0]
    spans = []
    for start, end, verdict in pieces:
        left, width = (start - ENDS[0]) / length, (end - start) / length
        word = verdict if width >= ROOM_FOR_A_WORD else ""
        says = f"alpha {start:.3g} to {end:.3g}: {verdict}"
        spans.append(
            f'<span class="sh-seg-{verdict}" style="left:{100 * left:.2f}%;width:{100 * width:.2f}%" '
            f'title="{says}">{word}</span>'
        )
    about = "; ".join(f"alpha {a:.3g} to {b:.3g} {verdict}" for a, b, verdict in pieces)
    return f'<div class="sh-strip" role="img" aria-label="{about}">{"".join(spans)}</div>'
