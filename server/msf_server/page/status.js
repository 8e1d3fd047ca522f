// The state of the service: ready, restarting or gone, and its load.

import { readiness, readStats } from "./api.js";
import { byId, element } from "./dom.js";
import { milliseconds } from "./format.js";

const POLL_MS = { ready: 10000, away: 2000, stats: 3000 };
const NOTICES = {
  "No live worker is registered.": "No worker is running; it is probably restarting. What you ask for now waits for it.",
  "This server is shutting down.": "This server is shutting down. The page keeps trying.",
};

let isReady = true;

// Return what people who wait should know of the service, or "".
export const whyWaiting = () => (isReady ? "" : byId("notice").textContent);

function show(reason) {
  isReady = reason === "";
  byId("health").className = `health ${isReady ? "ready" : "away"}`;
  byId("health").textContent = isReady ? "ready" : reason === null ? "no answer" : "not ready";
  byId("notice").hidden = isReady;
  byId("notice").textContent = isReady ? "" : reason === null
    ? "The service does not answer; it may be restarting. The page keeps trying."
    : NOTICES[reason] ?? reason;
}

// Call `onChange` after each look at the service; it returns whether the page needs another look soon.
export async function watchHealth(onChange) {
  show(await readiness());
  const isWaiting = await onChange(isReady);
  setTimeout(watchHealth, isReady && !isWaiting ? POLL_MS.ready : POLL_MS.away, onChange);
}

const CELLS = {
  "images/s": ({ images_per_s }) => images_per_s.toFixed(images_per_s < 10 ? 1 : 0),
  "p50": ({ p50_ms }) => (p50_ms === null ? "–" : milliseconds(p50_ms)),
  "p99": ({ p99_ms }) => (p99_ms === null ? "–" : milliseconds(p99_ms)),
  "queued": ({ jobs_queued }) => `${jobs_queued}`,
  "batch fill": ({ batch_fill }) => (batch_fill === null ? "–" : `${Math.round(100 * batch_fill)} %`),
  "slots in use": ({ slots, slots_in_use }) => `${slots_in_use} of ${slots}`,
  "workers": ({ workers }) => `${workers}`,
};

export async function watchStats() {
  const stats = document.hidden ? null : await readStats();
  byId("strip").hidden = stats === undefined;
  if (stats) {
    byId("strip").replaceChildren(...Object.entries(CELLS).map(([name, read]) => element(
      "div", {}, element("dt", { textContent: name }), element("dd", { textContent: read(stats) }),
    )));
  }
  if (stats !== undefined) setTimeout(watchStats, POLL_MS.stats); // undefined: they are not for this visitor
}
