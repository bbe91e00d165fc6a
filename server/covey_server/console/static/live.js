// Keeps a page current: hears /events and lets each part that shows something changed fetch itself again.
//
// data-live="rollout.changed run.changed"   events that concern an element
// data-live-id="r-1"                        only those that tell of this id
// data-live-every="5"                       also every so many seconds, for what arrives too often to be told each time
// Such an element gets a "refresh" event, at most once a second, never while its last one is still under way.
(() => {
  "use strict";
  const GATHER_MS = 250;
  const APART_MS = 1000;
  const TEXT = { opening: "Connecting…", live: "Live", lost: "Reconnecting…", ended: "Logged out" };
  const refreshed = new WeakMap(); // element -> when
  const waiting = new WeakSet();
  let last = Number(document.body.dataset.event || 0);
  let source = null;
  let retry = null;

  const tell = (state) => {
    const line = document.querySelector(".connection");
    if (!line || line.dataset.connection === state) return;
    line.dataset.connection = state;
    line.querySelector(".connection-text").textContent = TEXT[state];
  };

  const refresh = (element) => {
    if (waiting.has(element)) return;
    waiting.add(element);
    const rest = APART_MS - (performance.now() - (refreshed.get(element) ?? -APART_MS));
    setTimeout(() => {
      waiting.delete(element);
      if (!element.isConnected) return;
      if (element.classList.contains("htmx-request")) return refresh(element);
      refreshed.set(element, performance.now());
      element.dispatchEvent(new CustomEvent("refresh"));
    }, Math.max(GATHER_MS, rest));
  };

  const concerns = (element, name, ids) => {
    if (!element.dataset.live.split(" ").includes(name)) return false;
    return !element.dataset.liveId || ids.length === 0 || ids.includes(element.dataset.liveId);
  };

  const hear = (event) => {
    last = Math.max(last, Number(event.lastEventId || 0));
    const { name, data } = JSON.parse(event.data);
    const ids = Object.values(data).flat().map(String);
    for (const element of document.querySelectorAll("[data-live]")) {
      if (name === "reset" || concerns(element, name, ids)) refresh(element);
    }
  };

  const close = () => {
    clearTimeout(retry);
    source?.close();
    source = null;
  };

  const open = () => {
    close();
    source = new EventSource(`/events?after=${last}`);
    source.addEventListener("message", hear);
    source.addEventListener("open", () => tell("live"));
    source.addEventListener("error", () => {
      tell("lost");
      // A browser comes back by itself after a cut, but not after an HTTP error (a proxy while the server restarts).
      if (source?.readyState === EventSource.CLOSED) retry = setTimeout(open, 3000);
    });
  };

  for (const element of document.querySelectorAll("[data-live-every]")) {
    setInterval(() => document.hidden || refresh(element), 1000 * Number(element.dataset.liveEvery));
  }

  // A hidden page listens no more: browsers allow six connections to a server, and a stream holds one in every tab.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && open());
  document.addEventListener("htmx:responseError", () => tell("lost"));
  open();
})();
