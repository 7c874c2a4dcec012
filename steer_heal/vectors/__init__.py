"""Vectors: how they are extracted, added to a model, saved, and shared with other tools."""
