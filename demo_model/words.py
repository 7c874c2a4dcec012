"""The words of the demo world, in words.json: what is done to whom, who acts, what each lens says.

Slots of what a lens says: {v} whoever is touched by the deed, {w} the one who does it (object form), {o} who
gives the order, {t} the order's deed, {s} the span that a reply restates ("a boy kicking a dog"), {d} the
reader's deed. `thought` is what a think turn says once it knows its lens, `others` whom {v} names where a
deed has no victim of its own, `open_...` how a reply starts.
"""

import json
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
