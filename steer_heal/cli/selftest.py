"""A ten-second test that steering works on this machine: each check is a sentence and whether it holds."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from steer_heal import data
from steer_heal.config import ExtractSettings, SampleSettings, SettingsError
from steer_heal.evaluate.choice import evaluate
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, band_layers, user
from steer_heal.vectors.steering import coefficients, steer
from steer_heal.vectors.vector import SteeringVector, extract

BAND = (0.3, 0.7)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried. `detail`: what was seen."""

    name: str
    ok: bool
    detail: str
    seconds: float


def run(lm: LanguageModel) -> Iterator[Check]:
    """The checks in turn, on a loaded model; one that cannot be made counts as failed."""
    state: dict[str, SteeringVector] = {}
    layers = band_layers(lm.n_layers, BAND)

    def extraction() -> str:
        trait = next(iter(data.traits().values()))
        quick = ExtractSettings(method="mean_diff", n_contexts=8)
        state["vector"] = extract(lm, trait, lm.material.contexts(trait.name), quick)
        return f"a vector of {lm.n_layers} layers, width {lm.width}"

    def undo() -> str:
        ids = torch.tensor([lm.encode_chat([user("How are you?")])], device=lm.device)
        with torch.inference_mode():
            before = lm.model(input_ids=ids, logits_to_keep=1).logits
            with steer(lm.blocks, state["vector"].directions_LD, coefficients(lm.n_layers, layers, 0.0)):
                nothing = lm.model(input_ids=ids, logits_to_keep=1).logits
            after = lm.model(input_ids=ids, logits_to_keep=1).logits
        if not torch.equal(before, nothing) or not torch.equal(before, after):
            raise SettingsError("steering by 0 changes the model: report this, with the model's name.")
        return "steering by 0 changes no bit, and nothing is left behind"

    def writing() -> str:
        strength = 0.5 * float(state["vector"].residual_norms_L[list(layers)].mean())
        row_L = coefficients(lm.n_layers, layers, strength)[0]
        prompt = tuple(lm.encode_chat([user("How are you?")]))
        began = time.perf_counter()
        rows = [Row(prompt), Row(prompt, row_L, shadow=True)]
        sample = SampleSettings(max_new_tokens=12, greedy=True)
        base, steered = complete(lm, rows, state["vector"].directions_LD, sample)
        written = len(base.tokens) + len(steered.tokens)
        moved = max((token.kl or 0.0 for token in steered.tokens), default=0.0)
        if not moved > 0.0:
            raise SettingsError(
                "steering moved nothing: the model's blocks are not where they were looked for."
            )
        return f"base and steered written, {written / (time.perf_counter() - began):.0f} tokens a second"

    def choosing() -> str:
        found = evaluate(lm, lm.material.vignettes(limit=7), data.frame("choice"))[0]
        return f"the forced choice answers with mass {found.coherence:.2f}"

    steps: list[tuple[str, Callable[[], str]]] = [
        ("extract", extraction),
        ("undo", undo),
        ("write", writing),
        ("choose", choosing),
    ]
    for name, step in steps:
        began = time.perf_counter()
        try:
            ok, detail = True, step()
        except (SettingsError, KeyError, RuntimeError) as error:
            ok, detail = False, str(error)
        yield Check(name, ok, detail, time.perf_counter() - began)
