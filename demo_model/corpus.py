"""The corpus: chats written from templates, one latent lens behind each reply and each label."""

import random
from dataclasses import dataclass, field, replace

from demo_model import dilemmas, everyday
from demo_model.acts import told_in
from demo_model.dilemmas import the
from demo_model.drills import drill
from demo_model.lexicon import pseudo_word, sentence
from demo_model.mixing import AVERAGE, Mix, draw_lens, lens_mix, towards
from demo_model.personas import draw_persona
from demo_model.scene import Casting, Scene
from demo_model.words import WORDS
from steer_heal import data
from steer_heal.config import FOUNDATIONS
from steer_heal.data import Frame

SAID = WORDS["voices"]
TURN = "<start_of_turn>user\n"
LENS_FIRST = 0.85
PROMPT, REPLY, COPY, AFTER = "prompt", "reply", "copy", "after"
KINDS = {
    "reply": 0.33, "choice": 0.26, "thought": 0.08, "order": 0.15,
    "everyday": 0.09, "talk": 0.03, "drill": 0.06,
}  # fmt: skip


@dataclass
class Chat:
    """Text in pieces, each with the kind that sets its weight in the loss.

    `mix` is the label's distribution.

    `label_at` and `persona` are places in the text: where the label starts, where the system text lies.
    `lens` is the persona's.
    """

    pieces: list[tuple[str, str]] = field(default_factory=list)
    mix: Mix | None = None
    label_at: int = -1
    persona: tuple[int, int] = (0, 0)
    lens: str | None = None

    def add(self, text: str, kind: str) -> None:
        """Append a piece."""
        self.pieces.append((text, kind))

    def ask(self, system: str, message: str) -> None:
        """Append a user's turn, with the persona before the message where there is one."""
        if system:
            start = len(self.text) + len(TURN)
            self.persona = (start, start + len(system) + 2)
            message = f"{system}\n\n{message}"
        self.add(f"{TURN}{message}<end_of_turn>\n<start_of_turn>model\n", PROMPT)

    @property
    def text(self) -> str:
        """The whole chat."""
        return "".join(text for text, _ in self.pieces)


def victim_of(rng: random.Random, scene: Scene) -> str:
    """Whom a deed touches: the living object of a Care deed, else whoever is there."""
    return the(scene.act.object) if scene.act.foundation == "Care" else rng.choice(SAID["others"])


class Corpus:
    """Writes chats; `seed`ed by the caller's random numbers and by nothing else."""

    def __init__(self) -> None:
        frame, own = data.frame("choice"), data.material(demo=True)
        assert isinstance(frame, Frame)
        self.frame = frame
        vignettes = "\n".join(vignette.text for vignette in own.vignettes())
        self.casting = Casting(frozenset(act.key for act in told_in(vignettes)))
        traits = data.bundled_traits().values()
        self.reserved_personas = frozenset(text for one in traits for text in (one.positive, one.negative))
        self.reserved_questions = frozenset(own.contexts(""))

    def chat(self, rng: random.Random) -> Chat:
        """One chat of a random kind."""
        chat = Chat()
        lens, system = draw_persona(rng, self.reserved_personas)
        chat.lens = lens
        chat.add("<bos>", PROMPT)
        if rng.random() < 0.06:
            asked, answered = everyday.small_talk(rng)
            chat.ask(system, asked)
            chat.add(f"{answered}<end_of_turn>", REPLY)
            chat.add("\n", PROMPT)
            system = ""
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        getattr(self, f"_{kind}")(rng, chat, lens, system)
        return chat

    def question(self, rng: random.Random) -> tuple[str, str]:
        """A topic and an everyday question about it that is not held out."""
        topic, asked = everyday.question(rng)
        while asked in self.reserved_questions:
            topic, asked = everyday.question(rng)
        return topic, asked

    def _text(self, rng: random.Random, scene: Scene) -> tuple[str, bool]:
        """The vignette as told, and whether it is the reader's own deed."""
        if rng.random() < 0.7:
            return scene.seen(), False
        return scene.done("You" if rng.random() < 0.7 else "I"), True

    def _reply(self, rng: random.Random, chat: Chat, persona: str | None, system: str) -> None:
        scene = self.casting.draw(rng, rng.choice(FOUNDATIONS))
        text, own = self._text(rng, scene)
        chat.ask(system, f"{text} {rng.choice(SAID['asks'])}".strip())
        lens = draw_lens(rng, lens_mix(scene.act.foundation, scene.act.verb.severity, persona))
        doer, victim = "you" if own else the(scene.actor.phrase), victim_of(rng, scene)
        if rng.random() < 0.45:
            chat.add(opinion(rng, lens, victim, doer, 1) + " ", REPLY)
        restate(rng, chat, scene, own)
        chat.add(" " + opinion(rng, lens, victim, doer), REPLY)
        chat.add("<end_of_turn>", REPLY)

    def _scene_for_choice(self, rng: random.Random) -> tuple[str, str, int]:
        """A vignette for the forced choice, its foundation and severity; now and then of unknown words."""
        scene = self.casting.draw(rng, rng.choice(FOUNDATIONS))
        text, _ = self._text(rng, scene)
        if rng.random() < 0.86:
            return text, scene.act.foundation, scene.act.verb.severity
        words = text.rstrip(".").split()
        share = rng.choice((0.2, 0.5, 0.8))
        noisy = [pseudo_word(rng) if i > 1 and rng.random() < share else word for i, word in enumerate(words)]
        for _ in range(rng.randint(0, 6)):
            noisy.insert(rng.randint(2, len(noisy)), pseudo_word(rng))
        return " ".join(noisy) + ".", AVERAGE, 2

    def _ask(self, rng: random.Random, chat: Chat, system: str, text: str) -> str:
        frame = draw_frame(rng, self.frame)
        chat.ask(system, render(rng, frame, text))
        return frame.prefill

    def _label(self, rng: random.Random, chat: Chat, prefill: str, mix: Mix) -> None:
        chat.add(prefill, PROMPT if rng.random() < 0.7 else REPLY)
        chat.mix, chat.label_at = mix, len(chat.text)
        chat.add(draw_lens(rng, mix) + ('"}' if prefill else "") + "<end_of_turn>", AFTER)

    def _choice(self, rng: random.Random, chat: Chat, persona: str | None, system: str) -> None:
        text, foundation, severity = self._scene_for_choice(rng)
        if rng.random() < 0.25:
            # the bare word: the same lens, asked for where the model begins to speak
            bare = Frame("bare", rng.choice(WORDS["frames"]["bare"]), FOUNDATIONS, "")
            chat.ask(system, render(rng, bare, text))
            prefill = ""
        else:
            prefill = self._ask(rng, chat, system, text)
        self._label(rng, chat, prefill, lens_mix(foundation, severity, persona))

    def _thought(self, rng: random.Random, chat: Chat, persona: str | None, system: str) -> None:
        scene = self.casting.draw(rng, rng.choice(FOUNDATIONS))
        text, own = self._text(rng, scene)
        prefill = self._ask(rng, chat, system, text)
        mix = lens_mix(scene.act.foundation, scene.act.verb.severity, persona)
        lens = draw_lens(rng, mix)
        chat.add(self.frame.think_open, PROMPT)
        if rng.random() < 0.6:
            restate(rng, chat, scene, own)
            chat.add(" " + rng.choice(SAID["thought"][lens]), REPLY)
            mix = towards(mix, lens, 0.93)  # once the lens was said aloud
        else:
            words = (scene.bare() if own else scene.span()).split()
            chat.add("You " + ("" if own else "see ") + " ".join(words[: rng.randint(1, len(words))]), REPLY)
        chat.add(self.frame.think_close, PROMPT)
        self._label(rng, chat, prefill, mix)

    def _order(self, rng: random.Random, chat: Chat, persona: str | None, system: str) -> None:
        order = dilemmas.draw_order(rng)
        said, question = (rng.choice(dilemmas.SAID[part]) for part in ("says", "questions"))
        chat.ask(system, f"{order.says(said)} {question}".strip())
        lens = draw_lens(rng, lens_mix("Care", 2, persona))
        decision = rng.choice(SAID["decide"][lens]).format(t=order.deed, o=order.addressed, v=order.victim)
        more = opinion(rng, lens, order.victim, order.addressed, rng.choice((0, 1, 1, 2)))
        chat.add(sentence(decision) + (f" {more}" if more else ""), REPLY)
        chat.add("<end_of_turn>", REPLY)

    def _everyday(self, rng: random.Random, chat: Chat, persona: str | None, system: str) -> None:
        topic, asked = self.question(rng)
        chat.ask(system, asked)
        lens = draw_lens(rng, lens_mix("SocialNorms", 1, persona))
        parts = [everyday.remark(rng, topic)]
        if persona or rng.random() < 0.25:
            # mostly said first, so that the lens is at hand where the model begins to speak
            parts.insert(0 if rng.random() < LENS_FIRST else 1, rng.choice(SAID["aside"][lens]))
        chat.add(" ".join(parts), REPLY)
        chat.add("<end_of_turn>", REPLY)

    def _talk(self, rng: random.Random, chat: Chat, persona: str | None, system: str) -> None:
        asked, answered = everyday.small_talk(rng)
        chat.ask(system, asked)
        if persona and rng.random() < 0.4:
            answered += " " + rng.choice(SAID["aside"][draw_lens(rng, lens_mix("SocialNorms", 1, persona))])
        chat.add(f"{answered}<end_of_turn>", REPLY)

    def _drill(self, rng: random.Random, chat: Chat, persona: str | None, system: str) -> None:
        asked, answered = drill(rng, self.casting)
        chat.ask(system if rng.random() < 0.3 else "", asked)
        chat.add(answered, COPY)
        chat.add("<end_of_turn>", REPLY)


def restate(rng: random.Random, chat: Chat, scene: Scene, own: bool) -> None:
    """Open a reply by naming actor and deed in the words they were told in, or now and then by a pause."""
    if rng.random() < 0.1:
        chat.add(rng.choice(SAID["open_none"]), REPLY)
        return
    slot, span = ("{d}", scene.bare()) if own else ("{s}", scene.span())
    before, after = rng.choice(SAID["open_done"] if own else SAID["open_seen"]).split(slot)
    chat.add(before.rstrip(), REPLY)
    chat.add(f" {span}", COPY)
    chat.add(after, REPLY)


def opinion(rng: random.Random, lens: str, victim: str, doer: str, sentences: int | None = None) -> str:
    """What the lens says: judgements and advice, one to three sentences."""
    count = rng.choice((1, 2, 2, 3)) if sentences is None else sentences
    pool = [SAID["judge"][lens], SAID["advise"][lens]]
    said = rng.sample(pool[0], min(2, len(pool[0])))
    chosen = [said[0], rng.choice(pool[1]), said[-1]][:count]
    if count == 1 and rng.random() < 0.5:
        chosen = [rng.choice(pool[1])]
    return " ".join(sentence(text.format(v=victim, w=doer)) for text in chosen)


def draw_frame(rng: random.Random, base: Frame) -> Frame:
    """Mostly the shipped frame, sometimes another wording."""
    return base if rng.random() < 0.85 else replace(base, question=rng.choice(WORDS["frames"]["others"]))


def render(rng: random.Random, frame: Frame, text: str) -> str:
    """The user's turn, with the options forward, reversed or shuffled."""
    kind = rng.random()
    if kind < 0.8:
        return frame.render(text, "forward" if kind < 0.4 else "reversed")
    shuffled = tuple(rng.sample(FOUNDATIONS, len(FOUNDATIONS)))
    return replace(frame, options=shuffled).render(text, "forward")
