"""One colour a stage, the same everywhere: Okabe-Ito, at least 3:1 on the page in both modes."""

BASE, STEERED, HEALED = "#0072B2", "#D55E00", "#009E73"
STAGE_COLOURS = {"base": BASE, "steered": STEERED, "healed": HEALED}
INK = "#101418"
"""What is written on them."""
NEUTRAL = "#808890"
