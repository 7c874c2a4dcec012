"""The words of the page, a sentence each, where a "?" stands; and three steps for a first visit."""

import json
from html import escape

import gradio as gr

from components.theme import PANEL_HEAD
from steer_heal.config import SMOLLM2, heal_settings


def _answers(preset: str) -> str:
    """What a round of it writes and is measured on."""
    made = heal_settings(preset, model=SMOLLM2)
    asked = made.evaluate.n_vignettes or "all"
    return f"{made.data.n_answers + made.data.n_plain} answers and is measured on {asked} vignettes"


WORDS = {
    "method.md": {
        "alpha": "the dose: how much of the vector is added, in units of c*; 0 is the model as it came",
        "c*": "the size of the vector at which steering moves the next-word probabilities by one nat",
        "nats": "the unit of KL: how far steering moved the probabilities at a token; 0 is not at all",
        "carries": "how far a token's hidden state lies along the trait's vector, with what steering adds; 0 "
        "is the mean of neutral text, 1 its standard deviation, minus is the other pole",
        "layers": "the blocks of the network, counted from 0, to which the vector is added",
        "trait": "a pair of opposite poles; positive alpha pushes towards the first",
        "method": "how the vector is made out of what the model does under either pole",
        "temperature": "how evenly the next token is drawn: below 1 likely ones come oftener, at 0 always",
        "top-p": "only the likeliest tokens that have this probability together can be drawn",
        "top-k": "only this many of the likeliest tokens can be drawn",
    },
    "readings.md": {
        "vignette": "a short scene in which one moral foundation is violated",
        "text health": "whether the steered text still reads as base's own does: fine, damaged or broken",
        "perplexity": "how surprised base is by the text; gibberish makes it high",
        "relevance": "how much likelier an answer is after its own question than after others, in nats",
        "repetition": "the share of the text that says itself again, or in a talk what was answered before",
        "variety": "the share of the text's words that are different ones",
        "answer mass": "how much probability the allowed answers got; coherence on the map",
        "agreement": "the share of vignettes that the model labels right; chance is one in seven",
        "foundations": "seven things a wrong can be about; a bar is the probability that the model names it",
        "poles": "your own trait is measured by which pole the model says that it is",
        "random directions": "vectors of no meaning that change the model as much: what they do is chance",
        "coherent": "most probability is on the allowed answers; where it is not, a mark is faint",
    },
    "healing.md": {
        "round": "answers are written under steering, a LoRA learns to give them without, and is measured",
        "preset": f"how much a round does: quick writes {_answers('quick')}, standard "
        f"{_answers('standard')}; of smollm2 a round is some minutes on two cores",
        "retention": "how far the healed model moved without steering, divided by how far steering moved it",
    },
}
"""What each word means, by the document that says more."""
LABELS = ("alpha", "trait", "vignette", "method", "preset", "temperature", "top-p", "top-k")
"""The inputs whose label is such a word, which is also their id."""
STEPS = (
    ("alpha", "Drag <b>alpha</b> and read the two answers: what differs between them is the steering."),
    ("dose-find", "Press <b>Find where it breaks</b>: the doses at which the text stops making sense."),
    ("launch", "Press <b>Heal</b>: steered answers are trained in, and each round appears on the map."),
)


_NEXT = (
    '<button class="sh-button" data-tour="next">Next</button> '
    '<button class="sh-button" data-tour="skip">Skip</button>'
)
_DONE = '<button class="sh-button" data-tour="next">Done</button>'


def _name(term: str) -> str:
    return "help-" + "".join(c if c.isalnum() else "-" for c in term)


def what_is(term: str) -> str:
    """A "?" that says what a word means."""
    about = f'aria-label="What is {escape(term)}?"'
    return f'<button class="sh-help" type="button" popovertarget="{_name(term)}" {about}>?</button>'


def build() -> None:
    """What the marks open, the first visit's steps, and the keys."""
    said = "".join(
        f'<div class="sh-popover" popover id="{_name(term)}"><b>{escape(term)}</b>: {escape(about)}. '
        f'<a href="ui/{page}" target="_blank">more</a></div>'
        for page, terms in WORDS.items()
        for term, about in terms.items()
    )
    steps = "".join(
        f'<div data-at="{at}" hidden><b>{n} of {len(STEPS)}</b> {about} '
        f"{_NEXT if n < len(STEPS) else _DONE}</div>"
        for n, (at, about) in enumerate(STEPS, 1)
    )
    marks = json.dumps({term: what_is(term) for term in LABELS})
    gr.HTML(
        f'<div class="sh-note" id="tour" role="note" hidden>{steps}</div>{said}',
        js_on_load=f"SteerHeal.words(element, {marks})",
        head=PANEL_HEAD,
        apply_default_css=False,
        elem_id="words",
    )
