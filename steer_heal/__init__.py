"""Steer, break and heal a language model: the engine. It never imports gradio or components."""
