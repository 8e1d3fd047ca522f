// Drawing an answer: the images, and where its milliseconds went.

const PARTS = ["queue", "base", "residual", "decode", "encode", "other"];
const PIXELATED_UP_TO = 96; // smoothing would only blur images this small

export const byId = (id) => document.getElementById(id);

function element(name, className, text = "") {
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

function lay(tiles) {
  const grid = byId("images");
  grid.style.setProperty("--columns", columns(tiles.length));
  grid.style.setProperty("--columns-narrow", tiles.length <= 4 ? 2 : 4);
  grid.replaceChildren(...tiles.map((tile) => {
    const item = document.createElement("li");
    item.append(tile);
    return item;
  }));
}

export function showWaiting(count) {
  byId("empty").hidden = true;
  byId("timing").hidden = true;
  lay(Array.from({ length: count }, () => element("div", "waiting")));
}

export function showNothing() {
  lay([]);
  byId("empty").hidden = false;
}

export function showImages(answer, label, imageSize) {
  byId("images").classList.toggle("pixelated", imageSize <= PIXELATED_UP_TO);
  lay(answer.data.map(({ b64_json, index }) => {
    const link = element("a", "");
    link.href = `data:image/${answer.output_format};base64,${b64_json}`;
    link.download = `${label.replaceAll(/[^\w-]+/g, "-")}-seed${answer.seed}-${index}.${answer.output_format}`;
    const image = document.createElement("img");
    image.src = link.href;
    image.alt = `${label}, image ${index + 1} of ${answer.data.length}; download`;
    link.append(image);
    return link;
  }));
}

const milliseconds = (ms) => (ms >= 10000 ? `${(ms / 1000).toFixed(1)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);

export function showTimings(timings, roundTripMs) {
  const spent = PARTS.slice(0, -1).map((part) => timings[`${part}_ms`]);
  spent.push(Math.max(0, timings.total_ms - spent.reduce((sum, ms) => sum + ms, 0)));
  const total = spent.reduce((sum, ms) => sum + ms, 0) || 1;
  const percent = (ms) => `${((100 * ms) / total).toFixed(ms / total < 0.1 ? 1 : 0)} %`;

  byId("bar").replaceChildren(...PARTS.map((part, i) => {
    const segment = element("span", "");
    segment.style.cssText = `flex: ${spent[i]} 0 0; background: var(--${part})`;
    segment.title = `${part}: ${milliseconds(spent[i])}`;
    segment.hidden = spent[i] === 0;
    return segment;
  }));
  byId("bar").setAttribute("aria-label", PARTS.map((part, i) => `${part} ${milliseconds(spent[i])}`).join(", "));
  byId("legend").replaceChildren(...PARTS.map((part, i) => {
    const entry = document.createElement("li");
    entry.style.setProperty("--color", `var(--${part})`);
    const value = element("span", "value", milliseconds(spent[i]));
    entry.append(element("span", "name", part), value, element("span", "share", ` ${percent(spent[i])}`));
    return entry;
  }));
  byId("timing-total").textContent =
    `${milliseconds(timings.total_ms)} in the service, ${milliseconds(roundTripMs)} seen from here`;
  byId("timing").hidden = false;
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
