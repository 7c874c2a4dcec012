"""The shipped traits' paired replies and the scenes they are said to."""

import json
import re
from collections import Counter

import pytest

from steer_heal import data

TRAITS = data.bundled_traits()
FILES = [data.FOLDER, data.DEMO_FOLDER]
STOP = set(
    """
    about after again also anybody anyone anything away been before being could does doing done down
    else ever every everybody everyone everything from gets goes going have having here hers into itself
    just like made make makes might more most much must never nobody none nothing ones only over really
    said same says should some somebody someone something such than that their them then there these
    they thing things this those through very well were what when where which whom whose will with
    without would your
    """.split()  # noqa: SIM905 - one word a line is no easier to read
)


def stems(text: str) -> set[str]:
    """The first four letters of every word of four or more that is more than grammar."""
    words = re.findall(r"[a-z]+", re.sub(r"[’']\w+", "", re.sub(r"\{\w+\}", "", text.lower())))
    return {word[:4] for word in words if word not in STOP and len(word) >= 4}


def statements(row: object) -> set[str]:
    """Every answer that a frame offers, whatever kind of frame it is; what is asked is not one."""
    if isinstance(row, dict):
        besides = ("kind", "question", "prefill", "nudge", "orders")
        asked = [value for key, value in row.items() if key not in besides]
        return set().union(*map(statements, asked))
    if isinstance(row, list):
        return set().union(*map(statements, row))
    return {row} if isinstance(row, str) else set()


FRAMES = json.loads((data.FOLDER / "frames.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TRAITS)
def test_every_trait_carries_both_ways(name):
    trait = TRAITS[name]
    assert trait.positive
    assert (len(trait.scenes), len(trait.replies)) == (24, 8)
    said = [reply for pair in trait.replies for reply in pair]
    assert len(set(said)) == len(said)
    for positive, negative in trait.replies:
        long, short = max(map(len, (positive, negative))), min(map(len, (positive, negative)))
        assert long <= 1.25 * short


@pytest.mark.parametrize("frame", FRAMES)
def test_no_content_word_of_a_statement_is_in_scenes_or_replies(frame):
    """Else a vector from them would be read with its own words."""
    named = {stem: text for text in statements(FRAMES[frame]) for stem in stems(text)}
    assert named
    for trait in TRAITS.values():
        for text in (*trait.scenes, *(reply for pair in trait.replies for reply in pair)):
            met = {stem: named[stem] for stem in stems(text) & set(named)}
            assert not met, f"{text!r} of {trait.name} shares a word with a statement of {frame}: {met}"


def test_the_second_cloze_shares_no_content_word_with_the_first():
    """Nor its opposite, with un- or dis- before it."""
    first, second = (
        {stem for text in statements(FRAMES[name]) for stem in stems(re.sub(r"\b(un|dis)", "", text))}
        for name in ("cloze", "cloze-second")
    )
    assert len(first) > 10 < len(second)
    assert not first & second


def test_scenes_are_no_vignettes_and_no_prompts():
    told = Counter(scene for trait in TRAITS.values() for scene in trait.scenes)
    for folder in FILES:
        material = data.Material(folder)
        asked = {vignette.text for vignette in material.vignettes()}
        for name in TRAITS:
            asked |= {*material.contexts(name), *material.heal_prompts(name)}
        asked |= {*material.fixed_prompts(), *material.held_out_prompts(), *material.neutral_prompts()}
        assert not asked & set(told)
