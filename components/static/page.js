// Charts and tables of the page. Values arrive as gradio props; text reaches the DOM escaped by Python.
"use strict";

window.SteerHeal = (() => {
  const plain = (value) => JSON.parse(JSON.stringify(value));

  const AXIS = /^[xy]axis\d*$/;

  const colour = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();

  // Text and grid follow the page's mode; the figure brings only the colours of the stages.
  function themed(layout) {
    const text = colour("--body-text-color"), grid = colour("--border-color-primary");
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid };
    const named = ["xaxis", "yaxis", ...Object.keys(layout).filter((name) => AXIS.test(name))];
    return {
      ...layout,
      ...Object.fromEntries(named.map((name) => [name, { ...axis, ...layout[name] }])),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: text },
      hoverlabel: { bgcolor: colour("--background-fill-primary"), bordercolor: grid, font: { color: text }, align: "left" },
      modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: grid, activecolor: text },  // across, it would lie over the legend
      autosize: true,
    };
  }

  // Four megabytes, read once there is something to draw: a first answer does not wait for them.
  let library;
  const plotly = () => (library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "ui/plotly.min.js";
    script.onload = resolve;
    script.onerror = () => { library = undefined; reject(new Error("plotly.min.js cannot be read")); };
    document.head.append(script);
  }));

  // A plotly chart that keeps its element, the reader's zoom, and tells Python which point was clicked.
  function chart(element, trigger, props, watch) {
    const box = element.querySelector(".sh-plot"), empty = element.querySelector(".sh-plot-empty");
    const config = {
      responsive: true, displaylogo: false, showSendToCloud: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "toImage"],
    };
    const zoom = {};
    let wired = false, shownAxes = "";

    function wire() {
      wired = true;
      box.on("plotly_relayout", (change) => {
        for (const key of Object.keys(change)) {
          const [name, part] = key.split(".");
          if (!AXIS.test(name) || !part) continue;
          if (part.startsWith("range")) zoom[name] = plain(box.layout[name].range);
          else if (part === "autorange" && change[key]) delete zoom[name];
        }
      });
      box.on("plotly_click", ({ points }) => {
        const said = points.map((point) => point.customdata).find(Boolean);
        if (Array.isArray(said)) {
          opening = "round";
          trigger("click", { run_id: said[0], round: said[1], stage: said[2] });
        } else if (said) trigger("click", plain(said));
      });
    }

    async function draw() {
      const figure = props.value && JSON.parse(props.value);
      const any = Boolean(figure && figure.data && figure.data.length);
      box.hidden = !any;
      if (empty) empty.hidden = any;
      if (!any) return;
      const layout = themed(figure.layout);
      const axes = JSON.stringify([layout.xaxis?.title, layout.yaxis?.title]);
      if (axes !== shownAxes) for (const name of Object.keys(zoom)) delete zoom[name];
      shownAxes = axes;
      for (const [name, range] of Object.entries(zoom))
        if (layout[name]) layout[name] = { ...layout[name], range, autorange: false };
      await plotly();
      await Plotly.react(box, figure.data, layout, config);
      if (!wired) wire();
      element.dataset.drawn = String(Number(element.dataset.drawn || 0) + 1);
    }

    requestIdleCallback(plotly); // read while the browser has nothing else to do
    watch("value", draw);
    new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    new ResizeObserver(() => wired && !box.hidden && Plotly.Plots.resize(box)).observe(element);
    draw();
  }

  // The map as a picture, or the rows behind it.
  function download(kind) {
    const box = document.querySelector("#map .sh-plot"), name = "steer-heal-map";
    const rows = box.layout?.meta ?? [];
    if (!rows.length) return;
    if (kind !== "csv") {
      const layout = { ...box.layout, paper_bgcolor: colour("--body-background-fill") };
      const size = { width: box.offsetWidth, height: box.offsetHeight };
      Plotly.downloadImage({ data: box.data, layout }, { format: kind, filename: name, scale: 2, ...size });
      return;
    }
    const flat = rows.map(({ profile, ...row }) => ({ ...row, ...profile }));
    const cell = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
    const lines = [Object.keys(flat[0]), ...flat.map(Object.values)].map((line) => line.map(cell).join(","));
    save(`${name}.csv`, lines.join("\n") + "\n");
  }

  // A text as a file.
  function save(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // What a click opens comes into view and takes the focus, once Python has filled it.
  const OPENS = { open: "round", clone: "run-name", "open-sweep": "sweep", talk: "talk" };
  let opening = null;
  function reveal(name = opening) {
    opening = null;
    const found = name && document.getElementById(name);
    if (!found) return;
    const box = found.querySelector("input, textarea") ?? found;
    if (box === found) found.tabIndex = -1;
    box.focus({ preventScroll: true });
    const show = () => found.scrollIntoView({ block: box === found ? "start" : "nearest" });
    show();
    const growing = new ResizeObserver(show);  // what it holds may only come now
    growing.observe(document.body);
    const leave = () => growing.disconnect();
    setTimeout(leave, 3000);
    for (const moved of ["wheel", "touchmove", "keydown", "pointerdown"]) addEventListener(moved, leave, { once: true });
  }

  // Buttons inside HTML written by Python: each carries data-action and what it is about.
  function actions(element, trigger) {
    element.addEventListener("click", (event) => {
      const wanted = event.target.closest("[data-download]");
      if (wanted) return download(wanted.dataset.download);
      const target = event.target.closest("[data-action]");
      if (!target || !element.contains(target)) return;
      const { action, run, ask, sure, now } = target.dataset;
      if (sure && !confirm(sure)) return;
      const said = ask && prompt(ask, now);
      if (ask && !said) return;
      opening = OPENS[action] ?? opening;
      if (ask) return trigger("click", { action, run, said });
      trigger("click", { ...target.dataset });
    });
  }

  // The view as the browser's address: a change of it that comes a while after the one before can be gone back on.
  const SETTLED_MS = 1500;
  let changed = performance.now();
  function visit(view) {
    const to = `${location.pathname}?${view}`, now = performance.now();
    if (to === location.pathname + location.search) return;
    const settled = location.search && now - changed > SETTLED_MS;
    history[settled ? "pushState" : "replaceState"](null, "", to);
    changed = now;
  }
  addEventListener("popstate", () => location.reload());

  // Words: a "?" beside a label, what it opens beside it, a first visit's steps, keys.
  function words(element, marks) {
    function place() {
      for (const [name, mark] of Object.entries(marks)) {
        const label = document.querySelector(`#${name} [data-testid=block-info]`);
        if (label && !label.querySelector(".sh-help")) label.insertAdjacentHTML("beforeend", mark);
      }
      for (const box of document.querySelectorAll("#prompt textarea")) box.dir = "auto";
    }
    document.addEventListener("click", (event) => {
      setTimeout(place, 300);  // what is opened may have labels of its own
      const mark = event.target.closest?.("[popovertarget]");
      const box = mark && document.getElementById(mark.getAttribute("popovertarget"));
      if (!box) return;
      const at = mark.getBoundingClientRect();
      box.style.left = `${Math.max(8, Math.min(at.left, document.documentElement.clientWidth - 348))}px`;
      box.style.top = at.bottom < innerHeight - 120 ? `${at.bottom + 4}px` : `${at.top - 100}px`;
    }, true);
    const settle = setInterval(place, 500);
    setTimeout(() => clearInterval(settle), 8000);
    tour(element.querySelector("#tour"));
  }

  function tour(box) {
    const steps = [...box.children];
    let at = 0;
    function show() {
      steps.forEach((step, n) => { step.hidden = n !== at; });
      document.querySelectorAll(".sh-here").forEach((one) => one.classList.remove("sh-here"));
      box.hidden = at >= steps.length;
      if (!box.hidden) document.getElementById(steps[at].dataset.at)?.classList.add("sh-here");
    }
    box.addEventListener("click", ({ target }) => {
      if (!target.dataset.tour) return;
      at = target.dataset.tour === "next" ? at + 1 : steps.length;
      show();
    });
    function done({ target }) {  // what a step asks for was done
      if (box.hidden || !target.closest?.(`#${steps[at].dataset.at}`)) return;
      at += 1;
      show();
    }
    for (const event of ["click", "input"]) document.addEventListener(event, done);
    if (localStorage.getItem("steer-heal-visited")) return;
    localStorage.setItem("steer-heal-visited", "1");
    show();
  }

  // A click on what copies: the address holds the view.
  document.addEventListener("click", async ({ target }) => {
    if (!target.closest?.("[data-copy]")) return;
    const here = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
    try {
      await navigator.clipboard.writeText(location.href);
      target.textContent = here ? "Copied: it opens on this machine only" : "Copied";
    } catch (_) { // the browser forbids it: on plain http, or in a frame
      target.textContent = "Not allowed here: copy the address itself";
    }
    setTimeout(() => { target.textContent = "copy a link to this view"; }, 4000);
  });

  const NUDGE = { "[": -0.25, "]": 0.25 };
  document.addEventListener("keydown", (event) => {
    const { key, target, ctrlKey, metaKey, altKey } = event;
    const closes = target.matches?.("input[aria-expanded=true]") || document.querySelector(":popover-open, dialog[open]");
    if (key === "Escape" && !closes) document.querySelector("#stop")?.click();
    if (key === "Escape" && target.matches?.("input[aria-expanded=true]")) {
      setTimeout(() => target.blur());  // a list opens when it gets the focus, which it would still have
    }
    const typing = target.matches?.("textarea, select, [contenteditable], input:not([type=range], [type=checkbox])");
    if (typing || ctrlKey || metaKey || altKey) return;
    const slider = document.querySelector("#alpha input[type=range]");
    if (key === "/") document.querySelector("#prompt textarea")?.focus();
    else if (key in NUDGE && slider) {
      slider.value = Number(slider.value) + NUDGE[key];
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    } else return;
    event.preventDefault();
  }, true);  // before a list that is open has heard of it and is closed

  // Says in a bar of its own what became of the server.
  function say(text) {
    let bar = document.querySelector("#sh-server");
    if (!bar) {
      bar = document.createElement("div");
      Object.assign(bar, { id: "sh-server", className: "sh-error" });
      bar.setAttribute("role", "alert");
      document.querySelector(".gradio-container").prepend(bar);
    }
    bar.textContent = text;
    bar.hidden = !text;
  }

  // Asks for one short value while the tab is in view; tells Python only when it has changed.
  function mark(element, trigger, seconds) {
    let seen = "", asking = false, server = null, missed = 0;
    // Gradio may load the page by itself once the server is back: which one was here last is kept beside it.
    function welcome(started) {
      const last = sessionStorage.getItem("steer-heal-server") ?? started;
      const keep = () => sessionStorage.setItem("steer-heal-server", started);
      if (last === started) return keep();
      say("The page's server was started anew. Everything is as you left it; go on.");
      setTimeout(() => { keep(); say(""); }, 15000);
    }
    async function look() {
      if (!element.isConnected) return clearInterval(timer);
      if (document.hidden || asking) return;
      asking = true;
      try {
        const reply = await fetch("ui/mark");
        const now = reply.ok ? await reply.text() : seen, started = reply.headers.get("X-Started");
        if (missed) say("");
        missed = 0;
        if (server && started && started !== server) return location.reload();
        if (!server && started) welcome(started);
        server = started ?? server;
        if (now !== seen) trigger("click", { mark: (seen = now) });
      } catch (_) { // ask again next time
        if (++missed > 1) say("The page's server does not answer. This page goes on by itself once it does.");
      } finally { asking = false; }
    }
    const timer = setInterval(look, 1000 * seconds);
    document.addEventListener("visibilitychange", look);
  }

  // A slider that is dragged moves sixty times a second: Python hears of it at once, then every so many seconds,
  // and always of the last move.
  const paced = {};
  function pace(trigger, name, seconds) {
    let next = 0, timer = null;
    paced[name] = () => {
      timer ??= setTimeout(() => {
        timer = null;
        next = performance.now() + 1000 * seconds;
        trigger("click", {});
      }, Math.max(0, next - performance.now()));
    };
  }
  const moved = (name) => paced[name]?.();

  // Tokens are shaded by what steering changed, or by what they carry of the trait.
  const shade = (by) => { document.body.classList.toggle("sh-by-trait", by === "trait"); };

  return { chart, actions, mark, pace, moved, reveal, save, shade, visit, words };
})();
