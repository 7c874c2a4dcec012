"""The words of the demo world, in words.json: what is done to whom, who acts, what each lens says."""

import json
from pathlib import Path
from typing import Any

WORDS: dict[str, Any] = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
