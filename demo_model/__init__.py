"""How the bundled demo model is made: a template corpus, a tokenizer and a trainer, from nothing.

The model itself, which is installed, lies in `steer_heal/models/demo/`; this is not installed.
"""
