// Gradio hears the answers to all events through one stream, which the server ends when none is left to answer.
// An event that joins meanwhile, before the page has heard of that end, opens no stream of its own: its answer
// waits for the next event's. So such a join is followed by an empty event. In the head, before gradio's first fetch.
"use strict";

window.SteerHealStream = (() => {
  const plainly = window.fetch;
  let open = 0, unheard = false, knock = null;

  function ended() {
    open -= 1;
    setTimeout(() => {
      if (!unheard || open || !knock) return;
      unheard = false;
      knock();
    }, 250);
  }

  window.fetch = async (...args) => {
    const path = new URL(args[0].url ?? args[0], document.baseURI).pathname;
    if (path.endsWith("/queue/data") && args[0].signal) {
      open += 1;
      args[0].signal.addEventListener("abort", ended, { once: true });
    }
    const reply = await plainly(...args);
    if (open && path.endsWith("/queue/join")) unheard = true;
    return reply;
  };

  return { listen(trigger) { knock = () => trigger("click", {}); } };
})();
