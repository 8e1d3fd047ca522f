// Rendering of images, previews, timings, progress, statistics and errors.

const PARTS = ["queue", "base", "residual", "decode", "encode", "other"];
const MAX_PIXELATED_SIZE = 96; // smoothing blurs images up to this size

export const byId = (id) => document.getElementById(id);

export function element(name, className, text = "") {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
  return node;
}

function columns(count) {
  if (count <= 4) return count;
  if (count <= 6 || count === 9) return 3;
  return count <= 16 ? 4 : count <= 36 ? 6 : 8;
}

export function showWaiting(count, imageSize) {
  byId("empty").hidden = true;
  byId("timing").hidden = true;
  byId("images").classList.toggle("pixelated", imageSize <= MAX_PIXELATED_SIZE);
  byId("images").style.setProperty("--columns", columns(count));
  byId("images").style.setProperty("--columns-narrow", count <= 4 ? 2 : 4);
  byId("images").replaceChildren(...Array.from({ length: count }, () => {
    const item = document.createElement("li");
    item.append(element("div", "waiting"));
    return item;
  }));
}

export function showNothing() {
  byId("images").replaceChildren();
  byId("empty").hidden = false;
}

// Show a preview at the position of its image.
export function showPreview(position, { b64_json, output_format, partial_image_index }) {
  const item = byId("images").children[position];
  if (!item) return;
  const image = element("img", "preview");
  image.src = `data:image/${output_format};base64,${b64_json}`;
  image.alt = `Preview ${partial_image_index + 1} of image ${position + 1}`;
  item.replaceChildren(image);
}

export function showImages(job, label) {
  const { seed, output_format } = job.spec;
  const durations = durationsOf(job.timings);
  [...byId("images").children].forEach((item, position) => {
    const { b64_json, index } = job.data[position];
    const link = element("a", "");
    link.href = `data:image/${output_format};base64,${b64_json}`;
    link.download = `${label.replaceAll(/[^\w-]+/g, "-")}-seed${seed}-${index}.${output_format}`;
    const image = document.createElement("img");
    image.src = link.href;
    image.alt = `${label}, image ${position + 1} of ${job.data.length}; download`;
    link.append(image);
    const bar = element("div", "bar mini");
    bar.setAttribute("aria-hidden", "true"); // the large bar has the same label
    fill(bar, durations);
    item.replaceChildren(link, bar);
  });
}

const milliseconds = (ms) => (ms >= 10000 ? `${(ms / 1000).toFixed(1)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);

function durationsOf(timings) {
  const durations = PARTS.slice(0, -1).map((part) => timings[`${part}_ms`]);
  return [...durations, Math.max(0, timings.total_ms - durations.reduce((sum, ms) => sum + ms, 0))];
}

function fill(bar, durations) {
  bar.replaceChildren(...PARTS.map((part, i) => {
    const segment = element("span", "");
    segment.style.cssText = `flex: ${durations[i]} 0 0; background: var(--${part})`;
    segment.title = `${part}: ${milliseconds(durations[i])}`;
    segment.hidden = durations[i] === 0;
    return segment;
  }));
}

export function showTimings(timings, roundTripMs) {
  const durations = durationsOf(timings);
  const total = durations.reduce((sum, ms) => sum + ms, 0) || 1;
  const percent = (ms) => `${((100 * ms) / total).toFixed(ms / total < 0.1 ? 1 : 0)} %`;
  fill(byId("bar"), durations);
  byId("bar").setAttribute("aria-label", PARTS.map((part, i) => `${part} ${milliseconds(durations[i])}`).join(", "));
  byId("legend").replaceChildren(...PARTS.map((part, i) => {
    const entry = document.createElement("li");
    entry.style.setProperty("--color", `var(--${part})`);
    const value = element("span", "value", milliseconds(durations[i]));
    entry.append(element("span", "name", part), value, element("span", "share", ` ${percent(durations[i])}`));
    return entry;
  }));
  const serviceTime = milliseconds(timings.total_ms);
  const isCached = timings.total_ms > roundTripMs; // generated for an earlier request
  byId("timing-total").textContent = `${isCached ? `cached, generated in ${serviceTime}` : `${serviceTime} in the service`}, ${milliseconds(roundTripMs)} round trip`;
  byId("timing").hidden = false;
}

// Show the share of the work that is done, 0 to 1; null hides the bar.
export function showProgress(share, text = "") {
  byId("progress").hidden = share === null;
  if (share !== null) byId("progress").value = share;
  byId("stage").textContent = text;
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

export function showStats(stats) {
  byId("strip").hidden = stats === null;
  if (stats === null) return;
  byId("strip").replaceChildren(...Object.entries(CELLS).map(([name, read]) => {
    const cell = element("div", "");
    cell.append(element("dt", "", name), element("dd", "", read(stats)));
    return cell;
  }));
}

export function showError(error) {
  const box = byId("error");
  box.hidden = error === null;
  box.replaceChildren(element("strong", "", "Request failed"), error?.message ?? "");
  for (const input of document.querySelectorAll("#form input")) {
    input.toggleAttribute("aria-invalid", false);
    if (error?.param && input.id === error.param) input.setAttribute("aria-invalid", "true");
  }
}
