"""A plotly chart as a gradio component that keeps its element, its zoom, and reports clicks on points."""

import json
from typing import Any

import gradio as gr

from components.charts import plain
from components.theme import PANEL_HEAD

REVEAL = "() => SteerHeal.reveal()"
"""JavaScript: what the last click opened comes into view and takes the focus."""


def whole(figure: dict[str, Any], about: str = "") -> str:
    """A figure as text, headed by what it is about where that is said. Gradio sends a text whole and once;
    of nested values it copies each several times in the browser, and of a list that grows in the middle it
    sends what changed, which is put together wrongly there."""
    if about:
        title = {"text": plain(about), "font": {"size": 12}, "x": 0.01, "y": 0.995, "yanchor": "top"}
        figure = {**figure, "layout": {**figure["layout"], "title": title}}
    return json.dumps(figure)


def chart(*, elem_id: str, height: int, empty: str) -> gr.HTML:
    """A chart whose value is a figure as text (see `whole`), with `empty` (our own words) while it has no
    points.

    Its click event carries what the point's customdata says: names and values, or [run_id, round, stage].
    """
    template = (
        f'<div class="sh-plot" style="height:{height}px" hidden></div>'
        f'<div class="sh-empty sh-plot-empty" hidden>{empty}</div>'
    )
    return gr.HTML(
        html_template=template,
        js_on_load="SteerHeal.chart(element, trigger, props, watch)",
        head=PANEL_HEAD,
        apply_default_css=False,
        elem_id=elem_id,
    )


def buttons(html: str, *, elem_id: str, elem_classes: str | None = None) -> gr.HTML:
    """HTML whose elements with `data-action` report a click with all their data attributes."""
    return gr.HTML(
        html,
        html_template='<div class="sh-wide">${value}</div>',
        js_on_load="SteerHeal.actions(element, trigger)",
        head=PANEL_HEAD,
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes=elem_classes,
    )


def marks(seconds: float) -> gr.HTML:
    """Nothing to see: its click event comes when what the server has to show has changed."""
    return _unseen(f"SteerHeal.mark(element, trigger, {seconds})", "mark", head=PANEL_HEAD)


def pace(name: str, seconds: float) -> gr.HTML:
    """Nothing to see: its click event follows `SteerHeal.moved(name)`, at most once in so many seconds and
    once after the last."""
    return _unseen(f"SteerHeal.pace(trigger, '{name}', {seconds})", f"pace-{name}", head=PANEL_HEAD)


def knock() -> gr.HTML:
    """Nothing to see: its click event, which asks for nothing, opens a stream for answers that have none."""
    return _unseen("SteerHealStream.listen(trigger)", "knock")


def _unseen(script: str, elem_id: str, head: str | None = None) -> gr.HTML:
    """An element whose script makes its click events."""
    look: dict[str, Any] = {"apply_default_css": False, "padding": False, "container": False}
    return gr.HTML("", js_on_load=script, elem_id=elem_id, head=head, **look)
