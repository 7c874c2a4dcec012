"""What a vector does at its c*: to what its trait is measured on, to the likeliest words, to two answers."""

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import torch
from torch import Tensor

from steer_heal import data
from steer_heal.config import SampleSettings, build
from steer_heal.dose import controls
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.evaluate.agreement import Z_95
from steer_heal.evaluate.choice import evaluate
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, user
from steer_heal.records import Effect, Profile, SampleAnswer, Stopped, Trait, Vignette
from steer_heal.vectors.steering import coefficients, steer
from steer_heal.vectors.vector import SteeringVector

VERSION = 2
"""To be raised by hand with every change of what `measure` gives: no older effect is then found again."""
N_WORDS = 10
N_ANSWERS = 2
STEP = 0.05
"""How far to either side the slope is taken, as a share of the residual's length: where logits are straight,
and more than what bfloat16 rounds off."""


def measure(
    lm: LanguageModel,
    trait: Trait,
    steered_by: CalibratedVector,
    vignettes: Sequence[Vignette],
    reading: Profile,
    random_c_stars: Sequence[float],
    *,
    stop: Callable[[], bool],
) -> Effect:
    """Base, the vector at alpha 1, random directions at theirs, and the persona, on the same vignettes.

    `reading`: the frame that suits the model and its calibration (`Frames`). `random_c_stars`: of
    `controls.c_stars`. Errors: `Stopped` when `stop()`, which is asked all along, says so.
    """
    frame = data.frame(reading.frame)
    vector, layers = steered_by.vector, steered_by.layers
    doses_RL = steered_by.coefficients_RL(0.0, 1.0)
    base, steered = evaluate(
        lm, vignettes, frame, vector=vector, coefficients_RL=doses_RL,
        calibrated=reading.calibration, stop=stop,
    )  # fmt: skip
    how = layers, random_c_stars, vignettes, frame, base
    held = controls.measure(lm, *how, persona=trait.positive, stop=stop)
    promoted, demoted = words(lm, vector, layers)
    return Effect(
        trait=trait.name,
        target=trait.target,
        layers=layers,
        c_star=steered_by.calibration.c_star,
        frame=reading.frame,
        n_vignettes=len(vignettes),
        steered=steered.p,
        intervals=intervals(base, steered),
        base_agreement=base.agreement,
        agreement=steered.agreement,
        controls=held,
        promoted=promoted,
        demoted=demoted,
        answers=_answers(lm, vector, doses_RL, stop),
    )


def intervals(base: Profile, steered: Profile) -> dict[str, tuple[float, float]]:
    """95% interval of the movement of each foundation or pole: the mean of the paired differences over
    vignettes, by the normal approximation; nothing for fewer than two vignettes answered in both."""
    before = {row.id: row.p for row in base.per_vignette if row.mass > 0.0}
    pairs = [(row.p, before[row.id]) for row in steered.per_vignette if row.mass > 0.0 and row.id in before]
    if len(pairs) < 2:
        return {}
    found = {}
    for name in base.p:
        moved = [p[name] - p_base[name] for p, p_base in pairs]
        half = Z_95 * stdev(moved) / len(moved) ** 0.5
        found[name] = (fmean(moved) - half, fmean(moved) + half)
    return found


@torch.inference_mode()
def words(
    lm: LanguageModel, vector: SteeringVector, layers: Sequence[int], n: int = N_WORDS
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The `n` words that the direction makes likeliest, and unlikeliest, through the last norm and the output
    layer alone: by the slope of the logits where the layers' mean direction is added behind the last block,
    over the fixed prompts. A word is a token that begins with a space and is of letters, two or more.

    Source: the logit lens (nostalgebraist, 2020). Nothing for an operator, which has no direction.
    """
    if vector.operator is not None:
        return (), ()
    last = lm.n_layers - 1
    directions_LD = vector.directions_LD[list(layers)].mean(dim=0).expand(lm.n_layers, -1)
    slope_V = torch.zeros(())
    for prompt in lm.material.fixed_prompts():
        ids_1T = torch.tensor([lm.encode_chat([user(prompt)])], device=lm.device)
        step = STEP * float(vector.residual_norms_L[last])
        doses_BL = torch.cat([coefficients(lm.n_layers, [last], c) for c in (step, -step)])
        with steer(lm.blocks, directions_LD, doses_BL):
            more_V, less_V = lm.model(input_ids=ids_1T.expand(2, -1), logits_to_keep=1).logits[:, -1].float()
        slope_V = slope_V.to(more_V.device) + more_V - less_V
    order = slope_V.argsort(descending=True).tolist()
    return _words(lm, order, n), _words(lm, order[::-1], n)


def _words(lm: LanguageModel, order: Sequence[int], n: int) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for token in order:
        text = str(lm.tokenizer.decode([token]))
        word = text.strip()
        if text.startswith(" ") and word.isalpha() and len(word) > 1:
            found.setdefault(word.casefold(), word)
        if len(found) == n:
            break
    return tuple(found.values())


def _answers(
    lm: LanguageModel, vector: SteeringVector, doses_RL: Tensor, stop: Callable[[], bool]
) -> tuple[SampleAnswer, ...]:
    """The first of the fixed prompts answered by base and at c*, with the same random numbers."""
    prompts = lm.material.fixed_prompts()[:N_ANSWERS]
    rows = [
        Row(tuple(lm.encode_chat([user(prompt)])), dose_L, rng_stream=number)
        for number, prompt in enumerate(prompts)
        for dose_L in doses_RL
    ]
    written = complete(lm, rows, vector.steers, build(SampleSettings, max_new_tokens=48), stop=stop)
    if stop():
        raise Stopped
    texts = [row.text for row in written]
    return tuple(
        SampleAnswer(prompt, base, steered)
        for prompt, base, steered in zip(prompts, texts[::2], texts[1::2], strict=True)
    )
