// Drawing: the images as they become sharp, where their milliseconds went, and how the service is.

const PARTS = ["queue", "base", "residual", "decode", "encode", "other"];
const PIXELATED_UP_TO = 96; // smoothing would only blur images this small

export const byId = (id) => document.getElementById(id);

export function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function columns(count) {
  if (count <= 4) return count;
  if (count <= 6 || count === 9) return 3;
  return count <= 16 ? 4 : count <= 36 ? 6 : 8;
}

export function showWaiting(count, imageSize) {
  byId("empty").hidden = true;
  byId("timing").hidden = true;
  byId("images").classList.toggle("pixelated", imageSize <= PIXELATED_UP_TO);
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

// Where an image will be; `sharpness` from 0, the base alone.
export function showPreview(place, { b64_json, output_format, partial_image_index }) {
  const item = byId("images").children[place];
  if (!item) return;
  const image = element("img", "preview");
  image.src = `data:image/${output_format};base64,${b64_json}`;
  image.alt = `Preview ${partial_image_index + 1} of image ${place + 1}`;
  item.replaceChildren(image);
}

export function showImages(job, label) {
  const { seed, output_format } = job.spec;
  const spent = spentIn(job.timings);
  [...byId("images").children].forEach((item, place) => {
    const { b64_json, index } = job.data[place];
    const link = element("a", "");
    link.href = `data:image/${output_format};base64,${b64_json}`;
    link.download = `${label.replaceAll(/[^\w-]+/g, "-")}-seed${seed}-${index}.${output_format}`;
    const image = document.createElement("img");
    image.src = link.href;
    image.alt = `${label}, image ${place + 1} of ${job.data.length}; download`;
    link.append(image);
    const bar = element("div", "bar mini");
    bar.setAttribute("aria-hidden", "true"); // the large one says it
    fill(bar, spent);
    item.replaceChildren(link, bar);
  });
}

const milliseconds = (ms) => (ms >= 10000 ? `${(ms / 1000).toFixed(1)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);

function spentIn(timings) {
  const spent = PARTS.slice(0, -1).map((part) => timings[`${part}_ms`]);
  return [...spent, Math.max(0, timings.total_ms - spent.reduce((sum, ms) => sum + ms, 0))];
}

function fill(bar, spent) {
  bar.replaceChildren(...PARTS.map((part, i) => {
    const segment = element("span", "");
    segment.style.cssText = `flex: ${spent[i]} 0 0; background: var(--${part})`;
    segment.title = `${part}: ${milliseconds(spent[i])}`;
    segment.hidden = spent[i] === 0;
    return segment;
  }));
}

export function showTimings(timings, roundTripMs) {
  const spent = spentIn(timings);
  const total = spent.reduce((sum, ms) => sum + ms, 0) || 1;
  const percent = (ms) => `${((100 * ms) / total).toFixed(ms / total < 0.1 ? 1 : 0)} %`;
  fill(byId("bar"), spent);
  byId("bar").setAttribute("aria-label", PARTS.map((part, i) => `${part} ${milliseconds(spent[i])}`).join(", "));
  byId("legend").replaceChildren(...PARTS.map((part, i) => {
    const entry = document.createElement("li");
    entry.style.setProperty("--color", `var(--${part})`);
    const value = element("span", "value", milliseconds(spent[i]));
    entry.append(element("span", "name", part), value, element("span", "share", ` ${percent(spent[i])}`));
    return entry;
  }));
  const took = milliseconds(timings.total_ms);
  const service = timings.total_ms > roundTripMs ? `made before in ${took}` : `${took} in the service`;
  byId("timing-total").textContent = `${service}, ${milliseconds(roundTripMs)} seen from here`;
  byId("timing").hidden = false;
}

// `share` of the work that is done; null: there is none.
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
  box.replaceChildren(element("strong", "", "That did not work"), error?.message ?? "");
  for (const input of document.querySelectorAll("#form input")) {
    input.toggleAttribute("aria-invalid", false);
    if (error?.param && input.id === error.param) input.setAttribute("aria-invalid", "true");
  }
}
