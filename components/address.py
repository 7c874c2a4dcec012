"""A view as an address: what is asked and how it is steered, to be opened by someone else."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

SAMPLING = ("temperature", "top_p", "top_k")
"""Typed as text: gradio's box for a number cannot be empty."""
KEEP_RUNS = """(memory) => {
  const view = new URLSearchParams(location.search);
  view.delete('runs');
  view.delete('open');
  if (memory?.runs) view.set('runs', memory.runs.join(','));
  if (memory?.open) view.set('open', memory.open.join(':'));
  SteerHeal.visit(view);
}"""
"""JavaScript that puts the runs on the map and the open round into the browser's address."""
NUMBERS = {"alpha": "exact", "seed": "seed", "length": "length"}


def keep(names: Sequence[str]) -> str:
    """JavaScript that takes the form's values in the order of `names`, puts the view into the browser's
    address and gives the values back under their names; layers as shares of depth, which another model can
    open."""
    return f"""(...v) => {{
  const form = Object.fromEntries({json.dumps(list(names))}.map((name, i) => [name, v[i]]));
  const [low, high] = [form.low, form.high].sort((a, b) => a - b);
  const n = 1 + Number(document.querySelector('#high input[type=range]')?.max ?? 0);
  Object.assign(form, {{ low: +(low / n).toFixed(4), high: +((high + 1) / n).toFixed(4) }});
  const model = document.querySelector('#header .sh-model b')?.innerText ?? '';
  const before = new URLSearchParams(location.search);
  const view = new URLSearchParams({{ model, trait: form.trait, prompt: form.prompt }});
  view.set('band', `${{form.low}}-${{form.high}}`);
  view.set('alpha', form.exact ?? 0);
  view.set('seed', form.seed ?? 0);
  view.set('length', form.length);
  if (form.greedy) view.set('greedy', '1');
  for (const name of {json.dumps(SAMPLING)}) if (form[name] !== null) view.set(name, form[name]);
  if (form.method !== 'auto') view.set('method', form.method);
  if (form.where !== 'both') view.set('where', form.where);
  if (form.mix) view.set('mix', form.mix);
  for (const name of ['runs', 'open']) if (before.has(name)) view.set(name, before.get(name));
  SteerHeal.visit(view);
  return [form];
}}"""


def read(query: Mapping[str, str]) -> dict[str, Any]:
    """The form's values that an address holds, by the form's names; what cannot be read is left out."""
    found: dict[str, Any] = {
        key: query[key] for key in ("prompt", "trait", "method", "where", "mix") if key in query
    }
    for name, key in NUMBERS.items():
        value = number(query.get(name, ""))
        if value is not None:
            found[key] = int(value) if key != "exact" and value.is_integer() else value
    found |= {name: query[name] for name in SAMPLING if number(query.get(name, "")) is not None}
    low, dash, high = query.get("band", "").partition("-")
    ends = (number(low), number(high))
    if dash and None not in ends:
        found["low"], found["high"] = ends
    if "greedy" in query:
        found["greedy"] = query["greedy"] in ("1", "true", "yes")
    elif found:
        found["greedy"] = False
    return found


def number(text: str) -> float | None:
    """The finite number a text is, if it is one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
