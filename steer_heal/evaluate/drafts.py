"""Paired replies that a model writes itself, told the one persona and told the other, to scenes of its own.

A small model that is told "You are warm." writes nearly what it writes when told "You are cold.". So what is
written is what it would say as the one and not as the other: at each token, of those that are not much less
likely than the likeliest, the one with the highest

    log p(token | own persona) + GUIDANCE * (log p(token | own persona) - log p(token | other persona)).

Sources: contrastive decoding (Li et al., 2023, ACL, arXiv:2210.15097), classifier-free guidance of language
models (Sanchez et al., 2023, arXiv:2306.17806).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from steer_heal import forward
from steer_heal.config import SettingsError
from steer_heal.data import own_traits
from steer_heal.evaluate import scenes
from steer_heal.evaluate.questions import plain_ids
from steer_heal.models import LanguageModel, system, user
from steer_heal.records import Trait

GUIDANCE = 3.0
PLAUSIBLE = 0.1
"""Share of the likeliest token's probability that a token has to have."""
N_TOKENS = 24
N_HELD_OUT, N_STATEMENTS = 9, 6
"""Held-out prompts that are answered, and at most so many pairs of the answers measure."""
N_REPLIES = 12
"""Pairs that are kept to make a vector from."""
LEAST = 4
"""Words of a reply, and pairs that are sound."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A text, and by how many nats a token its own persona makes it likelier than the other one does."""

    text: str
    odds: float


def lacks(trait: Trait) -> bool:
    """Whether there is something to draft."""
    return not trait.replies or (trait.on_own_axis and not trait.statements)


def completed(
    lm: LanguageModel, row: dict[str, Any], trait: Trait, *, say: Callable[[str], None] = lambda _text: None
) -> tuple[dict[str, Any], str]:
    """The entry of a trait with what it lacks, drafted, and what is to be said of that: `statements`, where
    it is measured on its own axis, and `replies` with the `scenes` that they answer, each its own.

    Statements answer prompts on which nothing is trained. Scenes that the entry has are answered as they
    stand; else the model drafts them, and ours fill up. Of the sound pairs those are kept that differ most.
    `say` hears before every token what is drafted, and may end it by raising. Errors: `SettingsError` where
    too few pairs are sound: the model cannot tell the personas apart.
    """
    if not lacks(trait):
        return row, ""
    measuring = trait.on_own_axis and not trait.statements
    held_out = lm.material.held_out_prompts()[:N_HELD_OUT] if measuring else []
    asked, whose = ([], "") if trait.replies else _asked(lm, row.get("scenes", []), trait, say)
    prompts = [*held_out, *asked]
    pairs = _sound_pairs(prompts, *replies(lm, trait.positive, trait.negative, prompts, say))
    measure = [pairs[prompt] for prompt in held_out if prompt in pairs][:N_STATEMENTS]
    teach = {scene: pairs[scene] for scene in asked if scene in pairs}
    if (held_out and len(measure) < LEAST) or (asked and len(teach) < LEAST):
        raise SettingsError(
            f"{lm.name} cannot tell {trait.positive[:80]!r} from {trait.negative[:80]!r}: of {len(prompts)} "
            f"pairs of replies that it drafted {len(pairs)} are sound, which differ, are long enough, repeat "
            "nothing and are each likelier under their own persona; choose poles that differ more."
        )
    drafted: dict[str, Any] = {}
    if asked:
        furthest = sorted(teach, key=lambda scene: -min(reply.odds for reply in teach[scene]))[:N_REPLIES]
        kept = {scene: pair for scene, pair in teach.items() if scene in furthest}
        drafted = {"replies": _texts(kept.values()), "replies_drafted": True, "scenes": list(kept)}
    if measuring:
        drafted["statements"] = _texts(measure)
    said = f"{len(pairs)} of {len(prompts)} pairs of replies that {lm.name} drafted are sound.{whose}"
    if len(teach) > N_REPLIES:
        said += f" Kept are the {N_REPLIES} whose replies differ most."
    return row | drafted, said


def _sound_pairs(
    prompts: Sequence[str], plus: Sequence[Reply], minus: Sequence[Reply]
) -> dict[str, tuple[Reply, Reply]]:
    """By prompt the pairs that are sound; nothing in them is said twice, nor is it a prompt."""
    kept: dict[str, tuple[Reply, Reply]] = {}
    said = set(prompts)
    for prompt, one, other in zip(prompts, plus, minus, strict=True):
        if sound(one, other) and not said & {one.text, other.text}:
            kept[prompt] = one, other
            said |= {one.text, other.text}
    return kept


def _texts(pairs: Iterable[tuple[Reply, Reply]]) -> list[list[str]]:
    return [[reply.text for reply in pair] for pair in pairs]


def _asked(
    lm: LanguageModel, given: list[str], trait: Trait, say: Callable[[str], None]
) -> tuple[list[str], str]:
    """The scenes that are to be answered, and whose they are. Errors: `SettingsError` for too many."""
    if len(given) > scenes.N_DRAWN:
        raise SettingsError(f"Give at most {scenes.N_DRAWN} scenes to draft replies to, not {len(given)}.")
    never = [*lm.material.held_out_prompts(), *(text for pair in trait.statements for text in pair)]
    own = given or scenes.drafted(lm, trait.positive, trait.negative, never, say)
    others = [text for text in lm.material.contexts("") if text not in (*never, *own)]
    ours = others[: max(0, N_REPLIES - len(own))]
    whose = f" They answer {len(own)} scenes {'as given' if given else 'that it drafted'}"
    return [*own, *ours], whose + (f" and {len(ours)} of ours, for want of more." if ours else ".")


def sound(plus: Reply, minus: Reply) -> bool:
    """Whether the two differ, and each is long enough, repeats nothing, and is likelier under its own
    persona."""
    each = all(
        len(reply.text.split()) >= LEAST and not scenes.repeats(reply.text) and reply.odds > 0.0
        for reply in (plus, minus)
    )
    return each and plus.text != minus.text


@torch.inference_mode()
def replies(
    lm: LanguageModel, positive: str, negative: str, prompts: Sequence[str], say: Callable[[str], None]
) -> tuple[list[Reply], list[Reply]]:
    """To each prompt what the positive persona says, and what the negative one does, as whole sentences
    where it comes to one; without the poles' own words, where these are a word each."""
    n = 2 * len(prompts)
    asked = [tuple(lm.encode_chat([system(a), user(b)])) for a in (positive, negative) for b in prompts]
    others = asked[len(prompts) :] + asked[: len(prompts)]
    rows = forward.open(lm).begin([*asked, *others], torch.zeros(2 * n, lm.n_layers), N_TOKENS)
    never = torch.tensor(own_words(lm, positive, negative), dtype=torch.long, device=rows.logits_BV.device)
    written: list[list[tuple[int, float]]] = [[] for _ in asked]
    writing = set(range(n))
    for step in range(1, N_TOKENS + 1):
        say(f"drafts what either would say: step {step} of at most {N_TOKENS}")
        logits_BV = rows.logits_BV.float().index_fill(1, never, -torch.inf)
        own_NV, other_NV = logits_BV.log_softmax(dim=-1).split(n)
        odds_NV = own_NV - other_NV
        least_N1 = own_NV.max(dim=-1, keepdim=True).values + math.log(PLAUSIBLE)
        score_NV = (own_NV + GUIDANCE * odds_NV).masked_fill(own_NV < least_N1, -torch.inf)
        chosen_N1 = score_NV.argmax(dim=-1, keepdim=True)
        odds = odds_NV.gather(1, chosen_N1).flatten().tolist()
        for row, token in enumerate(chosen_N1.flatten().tolist()):
            if token in lm.eos_ids:
                writing.discard(row)
            if row in writing:
                written[row].append((token, odds[row]))
        if not writing:
            break
        rows.read(chosen_N1.repeat(2, 1))
    made = [ended(lm, tokens) for tokens in written]
    return made[: len(prompts)], made[len(prompts) :]


def own_words(lm: LanguageModel, positive: str, negative: str) -> list[int]:
    """The tokens that the poles' words begin with: who says "I am blunt" need not be."""
    words = [name for name in own_traits.names(positive, negative) if name.isalpha()]
    texts = [before + word for word in words for word in (word, word.capitalize()) for before in ("", " ")]
    return sorted({ids[0] for text in texts if (ids := plain_ids(lm, text))})


def ended(lm: LanguageModel, tokens: Sequence[tuple[int, float]]) -> Reply:
    """The longest beginning that ends a sentence and is long enough, else all."""
    ids = [token for token, _ in tokens]
    for n in range(len(ids), 0, -1):
        text = " ".join(lm.decode(ids[:n]).split())
        if text.endswith((".", "!", "?")) and len(text.split()) >= LEAST:
            break
    else:
        n, text = len(ids), " ".join(lm.decode(ids).split())
    return Reply(text, fmean(odds for _, odds in tokens[:n]) if n else 0.0)
