// Where the time of a request went.

import { byId, element } from "./dom.js";
import { milliseconds } from "./format.js";

const COLORS = new Set(["queue", "base", "residual", "denoise", "decode", "encode"]);

// Return [part, milliseconds] of each part, in the order of the answer, and what is left of the total.
function partsOf({ total_ms, ...timings }) {
  const parts = Object.entries(timings).filter(([, ms]) => typeof ms === "number").map(([name, ms]) => [name.replace(/_ms$/, ""), ms]);
  return [...parts, ["other", Math.max(0, total_ms - parts.reduce((sum, [, ms]) => sum + ms, 0))]];
}

const color = (part) => `var(--${COLORS.has(part) ? part : "other"})`;

// Show the times of one column; its round trip is null for images that were made before.
export function showTimings({ name, timings, roundTripMs }) {
  byId("timing").classList.toggle("blank", timings === null);
  if (timings === null) return;
  byId("timing-title").textContent = `Where the time ${name && `of ${name} `}went`;
  const parts = partsOf(timings);
  const total = parts.reduce((sum, [, ms]) => sum + ms, 0) || 1;
  byId("bar").setAttribute("aria-label", parts.map(([part, ms]) => `${part} ${milliseconds(ms)}`).join(", "));
  byId("bar").replaceChildren(...parts.filter(([, ms]) => ms > 0).map(([part, ms]) => {
    const segment = element("span", { title: `${part}: ${milliseconds(ms)}` });
    segment.style.cssText = `flex: ${ms} 0 0; background: ${color(part)}`;
    return segment;
  }));
  byId("legend").replaceChildren(...parts.map(([part, ms]) => {
    const entry = element("li", {}, element("span", { className: "name", textContent: part }),
      element("span", { className: "value", textContent: milliseconds(ms) }),
      element("span", { className: "share", textContent: `${((100 * ms) / total).toFixed(ms / total < 0.1 ? 1 : 0)} %` }));
    entry.style.setProperty("--color", color(part));
    return entry;
  }));
  const isCached = roundTripMs === null || timings.total_ms > roundTripMs; // made for an earlier request
  byId("timing-total").textContent = isCached
    ? `made earlier in ${milliseconds(timings.total_ms)}`
    : `${milliseconds(timings.total_ms)} in the service, ${milliseconds(roundTripMs)} round trip`;
}
