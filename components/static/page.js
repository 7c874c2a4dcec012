// Charts and tables of the page. Values arrive as gradio props; text reaches the DOM escaped by Python.
"use strict";

window.SteerHeal = (() => {
  const plain = (value) => JSON.parse(JSON.stringify(value));

  const colour = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();

  // Text and grid follow the page's mode; the figure brings only the colours of the stages.
  function themed(layout) {
    const text = colour("--body-text-color"), grid = colour("--border-color-primary");
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid };
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: text },
      hoverlabel: { bgcolor: colour("--background-fill-primary"), bordercolor: grid, font: { color: text }, align: "left" },
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
      autosize: true,
    };
  }

  // A plotly chart that keeps its element, the reader's zoom, and tells Python which point was clicked.
  function chart(element, trigger, props, watch) {
    const box = element.querySelector(".sh-plot"), empty = element.querySelector(".sh-plot-empty");
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "toImage"] };
    let zoom = null, wired = false;

    function wire() {
      wired = true;
      box.on("plotly_relayout", (change) => {
        if ("xaxis.range[0]" in change || "yaxis.range[0]" in change || "xaxis.range" in change)
          zoom = { x: plain(box.layout.xaxis.range), y: plain(box.layout.yaxis.range) };
        else if (change["xaxis.autorange"] || change["yaxis.autorange"]) zoom = null;
      });
      box.on("plotly_click", ({ points }) => {
        const [run_id, round, stage] = points[0].customdata || [];
        if (run_id) trigger("click", { run_id, round, stage });
      });
    }

    async function draw() {
      const figure = props.value && plain(props.value);
      const any = Boolean(figure && figure.data && figure.data.length);
      box.hidden = !any;
      if (empty) empty.hidden = any;
      if (!any) return;
      const layout = themed(figure.layout);
      if (zoom) {
        layout.xaxis = { ...layout.xaxis, range: zoom.x, autorange: false };
        layout.yaxis = { ...layout.yaxis, range: zoom.y, autorange: false };
      }
      await Plotly.react(box, figure.data, layout, config);
      if (!wired) wire();
      element.dataset.drawn = String(Number(element.dataset.drawn || 0) + 1);
    }

    watch("value", draw);
    new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    new ResizeObserver(() => wired && !box.hidden && Plotly.Plots.resize(box)).observe(element);
    draw();
  }

  // Buttons inside HTML written by Python: each carries data-action and what it is about.
  function actions(element, trigger) {
    element.addEventListener("click", (event) => {
      const target = event.target.closest("[data-action]");
      if (target && element.contains(target)) trigger("click", { ...target.dataset });
    });
  }

  return { chart, actions };
})();
