"""Colours, theme and the files the browser needs. All of it is served from this machine: no fonts, no CDN."""

from pathlib import Path

import gradio as gr
import plotly

from components.palette import BASE, STEERED

STATIC = Path(__file__).parent / "static"
CSS = STATIC / "page.css"
PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

# In the page's own head: it runs before anything of gradio.
PAGE_HEAD = '<script src="ui/stream.js"></script>'
# In `head=` of the components whose script is in it: gradio loads it once and waits for it there.
PANEL_HEAD = '<script src="ui/page.js"></script>'


def theme() -> gr.themes.Base:
    """A quiet theme on the system's own fonts; the accent is the base colour."""
    font = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    quiet = gr.themes.Base(
        primary_hue="sky",
        neutral_hue="slate",
        font=font,
        font_mono=mono,
        text_size="sm",
        spacing_size="sm",
        radius_size="sm",
    )
    return quiet.set(
        slider_color=STEERED,
        slider_color_dark=STEERED,
        button_primary_background_fill=BASE,
        button_primary_background_fill_dark=BASE,
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        block_shadow="none",
        layout_gap="8px",
        block_padding="5px 10px",
        input_padding="6px 9px",
    )
