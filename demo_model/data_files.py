"""Writes the demo's material: all kept out of its training, but for the questions of facts.json.

`python -m demo_model.data_files` (the same files each time).
"""

from __future__ import annotations

import json
import random

from demo_model import dilemmas, everyday, voices
from demo_model.acts import FOUNDATIONS
from demo_model.scene import Casting
from demo_model.vignettes import own_scenes, rows
from steer_heal.data import DEMO_FOLDER

N_CONTEXTS = 160
N_MORE = 126
"""Scenes, and as many orders, in the pool for healing before its last 48: each round can ask anew."""
N_FACTS = 20


def contexts(rng: random.Random) -> list[str]:
    """Everyday questions, every topic four times."""
    found: list[str] = []
    each = N_CONTEXTS // len(everyday.TOPICS)
    for topic in everyday.TOPICS:
        found += [asked.format(t=topic) for asked in rng.sample(everyday.QUESTIONS, each)]
    rng.shuffle(found)
    return found


def _scenes(rng: random.Random, count: int) -> list[str]:
    casting = Casting(unseen=True)
    own = {scene.act.key for _, scene in own_scenes()}
    found = []
    while len(found) < count:
        scene = casting.draw(rng, FOUNDATIONS[len(found) % len(FOUNDATIONS)])
        if scene.act.key not in own:
            told = scene.seen() if len(found) % 4 else scene.done()
            found.append(f"{told} {rng.choice([ask for ask in voices.ASKS if ask])}")
    return found


def _orders(rng: random.Random, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        order = dilemmas.draw_order(rng, unseen=True)
        asked = f"{order.says(rng.choice(dilemmas.SAYS))} {rng.choice([q for q in dilemmas.QUESTIONS if q])}"
        if asked not in found:
            found.append(asked)
    return found


def prompts(
    rng: random.Random, everyday_asks: list[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """What healing answers, six prompts answered every round and small talk; and what it never learns."""
    last = _scenes(rng, 21) + _orders(rng, 21) + everyday_asks[:6]
    rng.shuffle(last)
    fixed = [*_scenes(rng, 2), *_orders(rng, 2), everyday_asks[6], "How are you today?"]
    more = _others(_scenes(rng, 2 * N_MORE), last + fixed) + _others(_orders(rng, 2 * N_MORE), last + fixed)
    rng.shuffle(more)
    talk = [asked for questions, _ in everyday.SMALLTALK.values() for asked in questions[:2]]
    pool, n_held = more + last, (len(more) + len(last)) // 3
    held = {"prompts": pool[-n_held:], "neutral": list(neutral(everyday_asks).values())}
    return {"shared": pool[:-n_held], "fixed": fixed, "smalltalk": talk}, held


def neutral(everyday_asks: list[str]) -> dict[str, str]:
    """For each topic an everyday question that is not among these."""
    asked = {
        topic: [question.format(t=topic) for question in everyday.QUESTIONS] for topic in everyday.TOPICS
    }
    return {topic: next(q for q in questions if q not in everyday_asks) for topic, questions in asked.items()}


def facts(everyday_asks: list[str]) -> list[dict[str, str | list[str]]]:
    """Questions about a topic, and the two remarks that the demo knows on it."""
    asked = list(neutral(everyday_asks).items())[:N_FACTS]
    return [{"question": question, "answers": list(everyday.TOPICS[topic])} for topic, question in asked]


def _others(drawn: list[str], known: list[str]) -> list[str]:
    """`N_MORE` of them, each once and none that is known."""
    return [asked for asked in dict.fromkeys(drawn) if asked not in known][:N_MORE]


def main() -> None:
    """Write the files."""
    rng = random.Random(20)
    asks = contexts(rng)
    lines = "".join(json.dumps(row) + "\n" for row in rows())
    (DEMO_FOLDER / "vignettes.jsonl").write_text(lines, encoding="utf-8")
    asked, held = prompts(rng, asks)
    files = {"contexts": {"shared": asks}, "prompts": asked, "held_out_prompts": held}
    for name, content in {**files, "facts": {"facts": facts(asks)}}.items():
        (DEMO_FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
