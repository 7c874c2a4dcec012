"""The bundled demo model: weights and tokenizer beside this file, and `training`, which made them."""
