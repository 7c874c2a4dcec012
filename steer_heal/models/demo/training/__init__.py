"""How the bundled demo model is made: a template corpus, a tokenizer and a trainer, from nothing."""
