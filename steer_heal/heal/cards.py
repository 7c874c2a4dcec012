"""The model card beside every adapter and merged model: what it is, its origin, its measurements."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steer_heal import data
from steer_heal.config import DEMO, SMOLLM2, HealSettings, SettingsError, decided_method
from steer_heal.records import Trait
from steer_heal.sources import find
from steer_heal.vectors.methods import METHODS

NAME = "README.md"
OURS = "steer-heal"
"""The tag by which a card of ours is known."""
_STAGES = ("base", "steered", "healed")
Measured = Mapping[str, Mapping[str, Any]]


def card(
    settings: HealSettings,
    trait: Trait,
    round_: int,
    measured: Measured,
    facts: Mapping[str, Any],
    *,
    merged: bool = False,
) -> str:
    """Markdown with the hub's front matter.

    `measured`: stage -> what its `profile` event holds (p, coherence, n_vignettes, text). `facts`: what the
    `round` event holds (kept, made, plain, c_star, retention). `merged`: a whole model instead of an adapter.
    """
    what = "merged model" if merged else "LoRA adapter"
    asked = next((row["frame"] for row in measured.values() if row.get("frame")), "choice")
    parts = [
        front_matter(
            settings.model,
            ["pipeline_tag: text-generation", f"library_name: {'transformers' if merged else 'peft'}"],
            [] if merged else ["lora"],
        ),
        f"# {trait.title}: {what} of round {round_}",
        f"`{settings.model}` was steered along {_along(settings, trait)}; those of its answers that read as "
        "well as its own were kept, and this "
        + ("model" if merged else "adapter")
        + " learnt to give such answers without steering.",
        _use(settings, round_, merged),
        about_trait(trait),
        _profile(measured, trait),
        _data(settings, trait, measured, facts),
        f"## Settings\n\n```json\n{json.dumps(settings.model_dump(mode='json'), indent=2)}\n```",
        f"## Limits\n\nThe profile is measured on short moral vignettes, asked in the frame `{asked}`: it "
        "says which foundation the model names, not how it acts. Judge the model on your own task before you "
        "use it.",
    ]
    return "\n\n".join(parts) + "\n"


def _along(settings: HealSettings, trait: Trait) -> str:
    return f"the mix `{settings.mix}`, measured on *{trait.title}*" if settings.mix else f"*{trait.title}*"


def write(folder: str | Path, text: str) -> Path:
    """Put the card into the folder. Errors: `SettingsError`."""
    path = Path(folder) / NAME
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"Cannot write {path} ({error.strerror}): free some space.") from error
    return path


def front_matter(model: str, lines: list[str], tags: list[str]) -> str:
    """What the hub reads; models with a name of ours and local ones have no hub id."""
    if model not in (DEMO, SMOLLM2) and not Path(model).expanduser().exists():
        lines = [f"base_model: {json.dumps(model)}", *lines]
    tags = [OURS, "activation-steering", *tags]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _use(settings: HealSettings, round_: int, merged: bool) -> str:
    source = "this_folder"
    own = {DEMO: "steer_heal/models/demo", SMOLLM2: str(find(SMOLLM2).path or SMOLLM2)}
    base = own.get(settings.model, settings.model)
    if merged:
        code = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{source}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{source}")',
        ]
        return "## Use\n\n```python\n" + "\n".join(code) + "\n```"
    first, rounds = source, ""
    if round_ > 1:
        first = "round-1"
        rounds = (
            f"\n\nIt stands on rounds 1 to {round_ - 1} of the same run, whose folders lie beside this one: "
            "run this among them, or use `python -m steer_heal export --merged`."
        )
    code = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({json.dumps(base)})",
        f'model = PeftModel.from_pretrained(model, "{first}", adapter_name="round-1")',
    ]
    if round_ > 1:
        code += [
            f'rounds = [f"round-{{n}}" for n in range(1, {round_ + 1})]',
            "for name in rounds[1:]:",
            "    model.load_adapter(name, adapter_name=name)",
            "model.base_model.set_adapter(rounds)",
        ]
    return "## Use\n\n```python\n" + "\n".join(code) + "\n```" + rounds


def about_trait(trait: Trait) -> str:
    """What the trait is, its aim, and both poles."""
    target = ", ".join(f"{name} {'up' if sign > 0 else 'down'}" for name, sign in trait.target.items())
    return (
        f"## Trait\n\n`{trait.name}`: {trait.description} (aim: {target})\n\n"
        f"- towards: {trait.positive}\n- away from: {trait.negative}"
    )


def _profile(measured: Measured, trait: Trait) -> str:
    """A row a foundation or pole, those that the trait should move in bold; a column a stage."""
    stages = [stage for stage in _STAGES if stage in measured]
    rows = [
        "## Measured profile",
        "",
        f"Mean probability of each {'pole' if trait.on_own_axis else 'foundation'}; *steered* is the student "
        "before this round's training at alpha 1, *healed* is this one without steering.",
        "",
        f"| | {' | '.join(stages)} |",
        f"| --- |{' ---: |' * len(stages)}",
    ]
    for name in next((measured[stage]["p"] for stage in stages), ()):
        shown = f"**{name}**" if name in trait.target else name
        rows.append(
            f"| {shown} | {' | '.join(_number(measured[stage]['p'].get(name)) for stage in stages)} |"
        )
    others = {stage: measured[stage].get("others", {}) for stage in stages}
    for trait_name, found in next(iter(others.values()), {}).items():
        for name in found["p"]:
            values = (others[stage][trait_name]["p"].get(name) for stage in stages)
            rows.append(f"| {name}, of `{trait_name}` | {' | '.join(map(_number, values))} |")
    worth = [(measured[stage].get("agreement") or {}).get("value") for stage in stages]
    masses = [measured[stage].get("coherence") for stage in stages]
    for name, values in (("agreement with the labels", worth), ("coherence (answer mass)", masses)):
        if any(value is not None for value in values):
            rows.append(f"| {name} | {' | '.join(map(_number, values))} |")
    return "\n".join(rows)


def _recipe(settings: HealSettings, trait: Trait) -> str:
    """How the vector is extracted, in plain words."""
    name = decided_method(settings.extract.method, settings.model, replies=trait.by_replies)
    if name not in METHODS:
        return name
    over = f"{settings.extract.n_contexts} contexts"
    if METHODS[name].of_replies:
        over = f"{len(trait.scenes)} scenes x {len(trait.replies)} pairs of replies"
    return f"{METHODS[name].title}, over {over}"


def _data(settings: HealSettings, trait: Trait, measured: Measured, facts: Mapping[str, Any]) -> str:
    evaluation = settings.evaluate
    vignettes = next((row.get("n_vignettes") for row in measured.values()), None)
    which = evaluation.vignettes or "steer-heal's own"
    lines = [
        "## Data",
        "",
        f"- vector: {_recipe(settings, trait)}",
        f"- training: the student's own steered answers, {facts.get('kept', '?')} kept of "
        f"{facts.get('made', '?')} (those that read as well as base's own), at alpha "
        f"{', '.join(f'{alpha:g}' for alpha in settings.data.alphas)}"
        + (f"; beside them {n} of base's own to plain prompts" if (n := facts.get("plain")) else ""),
        f"- c* {_number(facts.get('c_star'))}, band {settings.band[0]:g}-{settings.band[1]:g} of depth",
        f"- evaluation: {vignettes or '?'} vignettes, {which} ({data.CONDITION})",
        f"- retention: {_number(facts.get('retention'))} of what steering at alpha 1 moved the trait by",
    ]
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "not measured"
