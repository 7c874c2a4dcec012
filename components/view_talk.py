"""A conversation as HTML, pure. Everything a model or a person wrote goes through `esc`."""

from collections.abc import Mapping

from components.talking import Conversation, Exchange, title
from components.view import STAGE_WORDS, esc, text_word
from steer_heal.records import Spoken, TalkFrame

EMPTY = (
    '<div class="sh-empty">Choose who answers, type a message and press Enter. Each voice goes on from its '
    "own (first) answer; one that joins later, from the first voice's. Loading the page anew ends the "
    "conversation: save it before.</div>"
)


def log(said: Conversation, names: Mapping[str, str]) -> str:
    """Every message, with its answers side by side."""
    return "".join(_exchange(number, one, names) for number, one in enumerate(said)) or EMPTY


def _exchange(number: int, one: Exchange, names: Mapping[str, str]) -> str:
    edit = (
        f'<button class="sh-button" data-action="edit" data-turn="{number}" '
        f'aria-label="edit message {number + 1}">edit</button>'
    )
    columns = "".join(_column(name, some, names) for name, some in one.answers.items())
    about = f'<div class="sh-dim">steered: {esc(one.steering)}</div>' if one.steering else ""
    return (
        f'<section class="sh-turn"><div class="sh-user"><span dir="auto">{esc(one.text)}</span>{edit}</div>'
        f'{about}<div class="sh-voices">{columns}</div></section>'
    )


def _column(name: str, some: tuple[Spoken, ...], names: Mapping[str, str]) -> str:
    stage = name if name in STAGE_WORDS else "healed"
    texts = "".join(
        f'<div class="sh-said sh-answer-{stage}" dir="auto">{esc(each.text)}'
        f"{'<span class=sh-dim> … (cut)</span>' if each.cut else ''}</div>{text_word(each.health)}"
        for each in some
    )
    return f'<div><div class="sh-answer-title sh-fg-{stage}">{esc(title(name, names))}</div>{texts}</div>'


def status(frame: TalkFrame) -> str:
    """How far the answers are, and which are written together."""
    n = max((len(one.tokens) for some in frame.voices for one in some), default=0)
    if frame.waiting:
        said = f"waiting for {frame.waiting} ahead"
    elif frame.done:
        said = f"{frame.message or 'done:'} {n} tokens in {frame.seconds:.1f} s"
    else:
        said = f"writing: {n} tokens" if n else frame.message or "reading"
    more = f" · {frame.together}" if frame.together else ""
    return f'<span class="sh-dim" role="status">{esc(said + more)}</span>'
