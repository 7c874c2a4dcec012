"""The page: every panel in its place, and what keeps them up to date."""

from typing import Any

import gradio as gr

from components import (
    address,
    api,
    dose,
    heal,
    model_picker,
    moral_map,
    plot,
    runs,
    steer,
    sweeps,
    talk,
    watching,
    words,
)
from components.engine import Engine
from components.steer import INTERNAL, LATEST, PRESS
from components.watching import Memory

WATCH_SECONDS = 1.5


def build(engine: Engine) -> gr.Blocks:
    """The page over an engine."""
    with gr.Blocks(title="Steer & Heal", analytics_enabled=False, fill_width=True) as page:
        kept = watching.memory()
        choice = model_picker.build(engine)
        words.build()
        with gr.Row(elem_classes="sh-columns"):
            with gr.Column(scale=6, min_width=330):
                steering = steer.build(engine)
                measured = dose.make(engine, steering)
            with gr.Column(scale=5, min_width=330):
                healing = heal.build(engine, steering, kept)
                swept = sweeps.build_form(engine, healing, kept)
                chart, key = moral_map.build_map()
        talked = talk.build(engine, steering.knobs)
        table, message, said = runs.build()
        listed, sweep_message, compared, front = sweeps.build()
        detail = moral_map.build_detail(engine, kept)
        # What was drawn last, and for which memory.
        seen = gr.State((0, None))
        drawn = [chart, key, healing.card, table, said, listed, compared, front, seen]

        def redraw(remembered: Memory) -> tuple[Any, ...]:
            runs = engine.runs.rows()
            figure, *rest = watching.draw(engine, runs, remembered)
            of_sweeps = sweeps.draw(engine, runs, remembered)
            return figure, *rest, *of_sweeps, (hash(figure), remembered)

        def look(last: tuple[int, Memory], remembered: Memory) -> tuple[Any, ...]:
            figure, *rest, now = redraw(remembered)
            return figure if now != last else gr.skip(), *rest, now

        def again(last: tuple[int, Memory], remembered: Memory) -> tuple[Any, ...]:
            """A look that began before a press and came after it has drawn what the press put away."""
            return (gr.skip(),) * len(drawn) if last[1] == remembered else redraw(remembered)

        def reopen(remembered: Memory) -> tuple[Any, ...]:
            return (*moral_map.open_round(engine, remembered), "all")

        open_outputs = [*detail.outputs, detail.which]
        for started in (healing.launched, swept):
            started.then(redraw, kept, drawn, **LATEST)
        panels = {table: message, key: message, message: message, healing.card: healing.message}
        panels[detail.head] = message
        acted = [one.click(runs.acting(engine), [kept], [kept, out], **PRESS) for one, out in panels.items()]
        acted.append(listed.click(sweeps.acting(engine), [kept], [kept, sweep_message], **PRESS))
        to_it = detail.head.click(talk.opening(engine), None, [talked.drawer, talked.voices], **INTERNAL)
        to_it.then(None, js=plot.REVEAL, **INTERNAL)
        cloned = healing.clone(table)
        steering.say(cloned.then)
        cloned.then(None, js=plot.REVEAL, **INTERNAL)
        acted += [one.click(moral_map.select, [kept], [kept], **INTERNAL) for one in (chart, front)]
        for event in acted:
            done = event.then(redraw, kept, drawn, **LATEST).then(reopen, kept, open_outputs, **LATEST)
            done.then(None, js=plot.REVEAL, **INTERNAL)
        looked = plot.marks(WATCH_SECONDS).click(look, [seen, kept], drawn, **LATEST)
        looked.then(again, [seen, kept], drawn, **LATEST)
        plot.knock().click(lambda: None, None, None, **INTERNAL)
        loaded = page.load(watching.adopt, kept, kept, **INTERNAL).then(redraw, kept, drawn, **INTERNAL)
        loaded.then(reopen, kept, open_outputs, **INTERNAL)
        kept.change(None, kept, None, js=address.KEEP_RUNS, **INTERNAL)
        steering.restart(steering.draw(model_picker.wire(page, engine, *choice).then).then)
        steering.on_load(page)
        measured(page)
        api.serve(engine)
    return page
