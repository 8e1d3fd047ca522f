// One image, large: how it developed, what made it, and what to do with it.

import { byId, copyText, element, FileUrls, flash, saveFile } from "./dom.js";
import { bytes } from "./format.js";
import { toQuery } from "./link.js";
import { fileName } from "./sheets.js";
import { layFrames } from "./sheet_view.js";

const urls = new FileUrls();
let tiles = [];
let position = 0;

// Open the lightbox on one of `all` tiles.
export function openLightbox(tile, all, isPixelated) {
  tiles = all.filter(({ frames }) => frames.length);
  position = tiles.indexOf(tile);
  byId("large").classList.toggle("pixelated", isPixelated);
  show();
  byId("lightbox").showModal();
}

function show() {
  const tile = tiles[position];
  const { fields, frames } = tile;
  urls.release();
  byId("large").replaceChildren();
  layFrames(byId("large"), tile, urls);
  const last = byId("large").lastElementChild;
  last.alt = `${fields.prompt}, image ${fields.first_index} of seed ${fields.seed}${tile.isFinal ? "" : ", unfinished"}`;
  set(100);
  byId("large-develop").disabled = frames.length < 2;
  byId("lightbox-title").textContent = fields.prompt;
  const facts = {
    Seed: `${fields.seed}, image ${fields.first_index}`, Steps: fields.num_steps, Guidance: fields.guidance_scale,
    ...(fields.negative_prompt ? { "Away from": fields.negative_prompt } : {}),
    File: tile.isFinal ? bytes(frames.at(-1).size) : "unfinished: a preview",
  };
  byId("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [
    element("dt", { textContent: name }), element("dd", { textContent: value }),
  ]));
  byId("count").textContent = `${position + 1} of ${tiles.length}`;
}

function set(share) {
  byId("large-develop").value = share;
  byId("large").style.setProperty("--t", share / 100);
}

function step(by) {
  position = (position + by + tiles.length) % tiles.length;
  show();
}

// `onUse` and `onVary` take the fields of the image.
export function listenForLightbox({ onUse, onVary }) {
  const dialog = byId("lightbox");
  const leaveWith = (action) => () => {
    dialog.close();
    action(tiles[position].fields);
  };
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("large-develop").addEventListener("input", ({ target }) => set(target.value));
  byId("large-develop").addEventListener("keydown", (event) => event.stopPropagation()); // its arrows move the slider
  byId("close-lightbox").addEventListener("click", () => dialog.close());
  byId("use-seed").addEventListener("click", leaveWith(onUse));
  byId("vary").addEventListener("click", leaveWith(onVary));
  byId("save").addEventListener("click", () => saveFile(tiles[position].frames.at(-1), fileName(tiles[position])));
  byId("share-image").addEventListener("click", async () => {
    const query = toQuery({ mode: "generate", fields: tiles[position].fields });
    flash(byId("share-image"), (await copyText(location.origin + location.pathname + query)) ? "Copied" : "Not copied");
  });
  dialog.addEventListener("keydown", ({ key }) => {
    if (key === "ArrowLeft") step(-1);
    if (key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", ({ target }) => { if (target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => urls.release());
}
