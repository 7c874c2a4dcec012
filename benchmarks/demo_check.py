"""Checks the bundled model on what it was never trained on: `python -m benchmarks.demo_check [--json]`.

Prints what each requirement asks for, what was measured, and whether it holds; exits 1 when any does not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

import torch

from benchmarks.demo_talk import restating, small_talk
from demo_model.acts import FOUNDATIONS
from demo_model.dilemmas import said_in_orders
from demo_model.personas import wording
from demo_model.scene import Casting
from demo_model.vignettes import own_scenes
from steer_heal import data
from steer_heal.config import DEFAULT_BAND, CalibrateSettings, ExtractSettings, SampleSettings, build
from steer_heal.dose.calibrate import calibrate
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.logp import text_logp
from steer_heal.evaluate.text_health import perplexity, repetition
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, band_layers, load, user
from steer_heal.records import Profile, Trait, Vignette
from steer_heal.vectors.steering import coefficients
from steer_heal.vectors.vector import SteeringVector, extract

RISING = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
ALPHAS = (*RISING, 4.0, 5.0, 6.0, 8.0)
CLASSIC = Path(__file__).resolve().parents[1].parent / "shared" / "data"
MAX_BYTES = 12 * 1024 * 1024
N_PROMPTS = 48
"""The last of the pool for healing."""


@dataclass(frozen=True)
class Check:
    """One requirement: what it asks for, what was measured, whether it holds."""

    name: str
    required: str
    measured: str
    passed: bool


def within(name: str, value: float, low: float, high: float) -> Check:
    """A check that a number lies in a range."""
    if low == float("-inf"):
        wanted = f"<= {high:g}"
    else:
        wanted = f">= {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
    return Check(name, wanted, f"{value:.3f}", low <= value <= high)


def at_least(name: str, value: float, low: float) -> Check:
    """A check that a number is at least `low`."""
    return within(name, value, low, float("inf"))


def at_most(name: str, value: float, high: float) -> Check:
    """A check that a number is at most `high`."""
    return within(name, value, float("-inf"), high)


def unseen_vignettes(count: int = 84) -> list[Vignette]:
    """Scenes whose pairs were all held out, also from orders, balanced over the foundations."""
    rng = random.Random(9)
    casting = Casting(frozenset(scene.act.key for _, scene in own_scenes()), unseen=True)
    found: dict[str, Vignette] = {}
    while len(found) < count:
        foundation = FOUNDATIONS[len(found) % len(FOUNDATIONS)]
        scene = casting.draw(rng, foundation)
        if not said_in_orders(scene.act):
            text = scene.seen()
            found.setdefault(text, Vignette(f"unseen-{len(found)}", foundation, text, "other_violate"))
    return list(found.values())


def never_ordered(vignettes: list[Vignette]) -> list[Vignette]:
    """Our own without those whose deed training met inside an order."""
    met = {stem for stem, scene in own_scenes() if said_in_orders(scene.act)}
    return [vignette for vignette in vignettes if vignette.id.rpartition("-")[0] not in met]


def base_checks(name: str, profile: Profile) -> list[Check]:
    """What a base profile must be."""
    assert profile.coherence is not None
    first = [score.order_tv for score in profile.per_vignette]
    return [
        within(f"{name}: SocialNorms", profile.social_norms, 0.55, 0.75),
        within(f"{name}: Care", profile.care, 0.15, 0.30),
        at_most(f"{name}: Authority", profile.p["Authority"], 0.02),
        at_least(f"{name}: coherence", profile.coherence, 0.98),
        at_most(f"{name}: difference between the orders (mean total variation)", fmean(first), 0.03),
    ]


class Bench:
    """The model, the default trait's vector and its c*."""

    def __init__(self, lm: LanguageModel, trait: Trait):
        self.lm, self.frame = lm, data.frame("choice")
        self.layers = band_layers(lm.n_layers, DEFAULT_BAND)
        self.vector: SteeringVector = extract(
            lm, trait, lm.material.contexts(trait.name), build(ExtractSettings)
        )
        self.prompts = lm.material.held_out_prompts()[-N_PROMPTS:]
        ids = [lm.encode_chat([user(prompt)]) for prompt in self.prompts[:8]]
        self.c_star = calibrate(lm, self.vector, self.layers, ids, build(CalibrateSettings)).c_star

    def profiles(self, vignettes: list[Vignette], alphas: tuple[float, ...] = (0.0,)) -> list[Profile]:
        """One profile per alpha."""
        doses = [coefficients(self.lm.n_layers, self.layers, alpha * self.c_star) for alpha in alphas]
        return evaluate(self.lm, vignettes, self.frame, vector=self.vector, coefficients_RL=torch.cat(doses))

    def prompted(self, vignettes: list[Vignette], persona: str) -> Profile:
        """The profile under a persona as the system prompt, which the template folds into the user's turn."""
        told = [Vignette(v.id, v.foundation, f"{persona}\n\n{v.text}", v.condition) for v in vignettes]
        return evaluate(self.lm, told, self.frame)[0]

    def texts(self, prompts: list[str], alpha: float) -> list[tuple[tuple[int, ...], str, float | None]]:
        """Answers at a dose: ids, text and perplexity under base."""
        lm, coefficients_L = self.lm, None
        if alpha:
            coefficients_L = coefficients(lm.n_layers, self.layers, alpha * self.c_star)[0]
        ids = [lm.encode_chat([user(prompt)]) for prompt in prompts]
        rows = [Row(prompt_ids=tuple(prompt), coefficients_L=coefficients_L, alpha=alpha) for prompt in ids]
        said = complete(lm, rows, self.vector.directions_LD, build(SampleSettings, max_new_tokens=60))
        written = [tuple(token.id for token in answer.tokens) for answer in said]
        logps = text_logp(lm, ids, written)
        return [(w, s.text, perplexity(p)) for w, s, p in zip(written, said, logps, strict=True)]


def persona_checks(bench: Bench, trait: Trait, vignettes: list[Vignette]) -> Iterator[Check]:
    """The default trait's own personas and others of its poles, none of them ever trained on."""
    for pole, lens, low, persona in (
        ("positive", "Care", 0.80, trait.positive),
        ("negative", "SocialNorms", 0.95, trait.negative),
    ):
        yield at_least(f"persona {pole}: {lens}", bench.prompted(vignettes, persona).p[lens], low)
        rng = random.Random(1)
        others = [bench.prompted(vignettes[:42], wording(rng, lens, unseen=True)).p[lens] for _ in range(8)]
        yield at_least(f"8 other unseen wordings, {pole}: mean {lens}", fmean(others), low)


def dose_checks(name: str, profiles: list[Profile]) -> Iterator[Check]:
    """How a profile must move with alpha."""
    at = dict(zip(ALPHAS, profiles, strict=True))
    base = at[0.0]
    mass = {alpha: (one.coherence or 0.0) / (base.coherence or 1.0) for alpha, one in at.items()}
    yield at_least(f"{name}, alpha 1: SocialNorms down by", base.social_norms - at[1.0].social_norms, 0.08)
    yield at_least(f"{name}, alpha 1: Care up by", at[1.0].care - base.care, 0.06)
    yield at_least(f"{name}, alpha 1: coherence / base's", mass[1.0], 0.97)
    care = [at[alpha].care for alpha in RISING]
    norms = [at[alpha].social_norms for alpha in RISING]
    steps = " ".join(f"{value:.2f}" for value in care)
    yield Check(f"{name}: Care rises from alpha -1 to 3", "every step", steps, care == sorted(care))
    steps = " ".join(f"{value:.2f}" for value in norms)
    falls = norms == sorted(norms, reverse=True)
    yield Check(f"{name}: SocialNorms falls from alpha -1 to 3", "every step", steps, falls)
    least5 = min(mass[alpha] for alpha in (4.0, 5.0))
    least8 = min(mass[alpha] for alpha in (4.0, 5.0, 6.0, 8.0))
    yield at_most(f"{name}: coherence / base's by alpha 5", least5, 0.95)
    yield at_most(f"{name}: coherence / base's by alpha 8", least8, 0.60)


def text_checks(bench: Bench) -> Iterator[Check]:
    """Free text: fluent at 0, broken by alpha 3."""
    prompts = bench.prompts[:42]
    seen = {alpha: bench.texts(prompts, alpha) for alpha in (0.0, 1.0, 2.0, 3.0)}
    middle = {a: median(p for _, _, p in rows if p is not None) for a, rows in seen.items()}
    loops = {a: median(repetition(text) for _, text, _ in rows) for a, rows in seen.items()}
    ratio = middle[3.0] / middle[0.0]
    numbers = ", ".join(f"{a:g}: {middle[a]:.1f} / {loops[a]:.2f}" for a in seen)
    asked = "at alpha 3 >= 20 x alpha 0's, or repetition > 0.25"
    yield Check("text: median perplexity / repetition", asked, numbers, ratio >= 20 or loops[3.0] > 0.25)


def classic_checks(bench: Bench) -> Iterator[Check]:
    """The classic vignettes, where this machine has them."""
    for condition in ("other_violate", "self_violate"):
        path = CLASSIC / f"vignettes_classic_{condition}.jsonl"
        if path.exists():
            profile = bench.profiles(data.vignettes(path, condition=condition))[0]
            yield at_least(f"classic {condition} (132): answer mass", profile.coherence or 0.0, 0.95)


def checks(say: Callable[[str], None]) -> Iterator[Check]:
    """All checks, cheapest first."""
    lm = load("demo")
    folder = Path(str(lm.model.config._name_or_path))
    yield at_most("weights, MB", (folder / "model.safetensors").stat().st_size / 2**20, MAX_BYTES / 2**20)
    trait = data.trait("care_over_authority")
    bench = Bench(lm, trait)
    say(f"c* {bench.c_star:.2f}, layers {bench.layers}")
    sets = {
        "unseen 84": unseen_vignettes(),
        "own, seen": lm.material.vignettes(condition="other_violate"),
        "own, done": lm.material.vignettes(condition="self_violate"),
    }
    clean = never_ordered(sets["own, seen"])
    sets[f"own, seen, {len(clean)} never ordered"] = clean
    for name, vignettes in sets.items():
        profiles = bench.profiles(vignettes, ALPHAS)
        yield from base_checks(name, profiles[ALPHAS.index(0.0)])
        yield from dose_checks(name, profiles)
    yield from persona_checks(bench, trait, sets["unseen 84"])
    yield from text_checks(bench)
    fluent, right = restating(lm)
    yield at_least("replies that end and do not loop, of 420 unseen scenes", fluent, 0.95)
    yield at_least("restatements that name actor and deed rightly", right, 0.90)
    yield at_least("small talk answered to the point", small_talk(lm), 0.90)
    yield from classic_checks(bench)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    args = parser.parse_args(argv)
    begun = time.monotonic()
    found = list(checks(lambda text: print(text, file=sys.stderr)))
    failed = [check for check in found if not check.passed]
    if args.json:
        seconds = time.monotonic() - begun
        document = {"passed": not failed, "seconds": seconds, "checks": [asdict(check) for check in found]}
        print(json.dumps(document, indent=1))
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            mark = "ok  " if check.passed else "FAIL"
            print(f"{mark} {check.name:{width}}  {check.measured}  (required {check.required})")
        print(f"{len(found) - len(failed)} of {len(found)} hold, {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
