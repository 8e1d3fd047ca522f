// The sheet on the page: its columns, its tiles, and each tile's frames from the base to the image.

import { byId, element, FileUrls, nextTask } from "./dom.js";
import { bytes, counted, milliseconds, settingsText } from "./format.js";
import { tilesIn, tilesOn } from "./sheets.js";

const MAX_PIXELATED_SIZE = 96; // smoothing blurs images up to this size

export const isPixelated = ({ imageSize }) => imageSize <= MAX_PIXELATED_SIZE;

const placeholder = byId("columns").firstElementChild;
const urls = new FileUrls();
let items = new Map(); // list item by tile

function numColumns(count) {
  if (count <= 2) return count;
  return count <= 4 || count === 8 || (count > 9 && count <= 16) ? 4 : count <= 9 ? 3 : count <= 36 ? 6 : 8;
}

// Show a sheet; `onOpen` is called with a tile whose image is clicked.
export function showSheet(sheet, onOpen) {
  urls.release();
  items = new Map();
  byId("columns").classList.toggle("pixelated", isPixelated(sheet));
  byId("columns").classList.remove("empty");
  byId("columns").dataset.mode = sheet.mode;
  byId("columns").replaceChildren(...sheet.columns.map((column) => columnView(column, onOpen)));
  describe(sheet);
  layTiles(sheet);
}

// Lay the tiles one by one, so that the page answers meanwhile.
async function layTiles(sheet) {
  const own = items;
  for (const tile of tilesOn(sheet)) {
    if (items !== own) return; // another sheet is shown
    updateTile(tile);
    await nextTask();
  }
}

// Show empty tiles.
export function showNoSheet() {
  urls.release();
  byId("columns").replaceChildren(placeholder);
  byId("columns").classList.add("empty");
  byId("sheet-title").textContent = "Nothing yet";
  byId("summary").textContent = "Choose a class and press Generate.";
}

function columnView(column, onOpen) {
  const tiles = tilesIn(column);
  const list = element("ul", { className: "tiles" });
  list.style.setProperty("--columns", numColumns(tiles.length));
  for (const tile of tiles) {
    const item = element("li");
    items.set(tile, item);
    list.append(item);
    const button = element("button", {
      type: "button", className: "tile", disabled: true, "aria-label": nameOf(tile), onclick: () => onOpen(tile),
    });
    item.append(button, element("span", { className: "caption", textContent: tile.caption }));
  }
  const head = element("p", { className: "column-head" });
  head.hidden = !column.name;
  return element("section", { className: "column", "aria-label": column.name ? `Setting ${column.name}` : "All images" }, head, list);
}

function nameOf({ fields, caption, frames, isFinal }) {
  const state = isFinal ? "" : frames.length ? ", unfinished" : ", waiting";
  return `${fields.prompt}, image ${fields.first_index}${state}${caption.startsWith("#") ? "" : `, ${caption}`}`;
}

export function updateTile(tile) {
  const button = items.get(tile)?.querySelector(".tile");
  if (!button) return;
  button.setAttribute("aria-label", nameOf(tile));
  button.disabled = tile.frames.length === 0;
  button.classList.toggle("unfinished", !tile.isFinal);
  button.nextElementSibling?.classList.toggle("unfinished", !tile.isFinal && tile.frames.length > 0);
  layFrames(button, tile, urls);
}

// Stack a tile's frames in `node`; how far they are developed is `--t` of the sheet, from 0 to 1.
export function layFrames(node, tile, fileUrls) {
  const frames = tile.frames.filter(Boolean);
  node.style.setProperty("--last", Math.max(1, frames.length - 1));
  const images = [...node.querySelectorAll("img")];
  frames.forEach((frame, position) => {
    const image = images[position] ?? node.appendChild(element("img", { alt: "", draggable: false, width: 128, height: 128 }));
    const url = fileUrls.of(frame);
    if (image.src !== url) image.src = url;
    image.style.setProperty("--k", frames.length === 1 ? 0 : position);
  });
  images.slice(frames.length).forEach((image) => image.remove());
}

// Show what the sheet is, and for a comparison what each setting cost.
export function describe(sheet) {
  const { fields, mode } = sheet;
  const kept = tilesOn(sheet).length;
  byId("sheet-title").textContent = fields.prompt;
  byId("summary").textContent = {
    generate: `${counted(kept, "image")}, seed ${fields.seed}, ${settingsText(fields)}`,
    compare: `two settings of ${counted(fields.n, "image")}, seed ${fields.seed}`,
    vary: `image ${fields.first_index} of seed ${fields.seed}: the same noise, other settings`,
  }[mode];
  if (mode !== "compare") return;
  const heads = byId("columns").querySelectorAll(".column-head");
  const costs = sheet.columns.map(cost);
  sheet.columns.forEach((column, position) => {
    const own = costs[position];
    const ratio = position === 1 && costs[0] && own ? ratioText(costs[0], own) : "";
    heads[position].replaceChildren(
      element("strong", { textContent: column.name }), ` ${column.fields.model !== fields.model ? `${column.fields.model}, ` : ""}${settingsText(column.fields)}`,
      element("span", { className: "cost", textContent: own ? `${milliseconds(own.ms)}, ${bytes(own.bytes)} an image${ratio}` : "waiting" }),
    );
  });
}

// Return the time of a column without its wait in the queue, and the mean size of its files; null until it is finished.
function cost(column) {
  const tiles = tilesIn(column).filter(({ isFinal }) => isFinal);
  if (!column.timings || tiles.length === 0) return null;
  const size = tiles.reduce((sum, { frames }) => sum + frames.at(-1).size, 0) / tiles.length;
  return { ms: column.timings.total_ms - column.timings.queue_ms, bytes: size };
}

function ratioText(first, second) {
  const speedup = first.ms / second.ms;
  const share = Math.round(100 * (second.bytes / first.bytes - 1));
  return `: ${speedup >= 1 ? `${speedup.toFixed(1)} × as fast` : `${(1 / speedup).toFixed(1)} × as long`}, ${share > 0 ? "+" : ""}${share} % bytes`;
}
