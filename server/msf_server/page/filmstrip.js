// The history as a strip of thumbnails.

import { byId, element, FileUrls } from "./dom.js";
import { settingsText } from "./format.js";
import { forgetSheets, listSheets } from "./history.js";
import { tilesOn } from "./sheets.js";

const NUM_SHOWN = 4; // images of one sheet

const urls = new FileUrls();

// `onOpen` takes a sheet.
export async function showFilmstrip(onOpen) {
  const sheets = await listSheets();
  urls.release();
  byId("forget").hidden = sheets.length === 0;
  byId("history-hint").hidden = sheets.length > 0;
  byId("history").replaceChildren(...sheets.map((sheet) => {
    const files = tilesOn(sheet).map(({ frames }) => frames.at(-1)).filter(Boolean).slice(0, NUM_SHOWN);
    const images = files.map((file) => element("img", { src: urls.of(file), alt: "", width: 40, height: 40, loading: "lazy" }));
    const mode = sheet.mode === "generate" ? "" : `${sheet.mode}: `;
    const label = element("span", { className: "label", textContent: `${mode}${sheet.fields.prompt}` });
    const button = element("button", { type: "button", title: `seed ${sheet.fields.seed}, ${settingsText(sheet.fields)}` },
      element("span", { className: "stack" }, ...images), label);
    button.addEventListener("click", () => onOpen(sheet));
    return element("li", {}, button);
  }));
}

export function listenForForgetting(onOpen) {
  byId("forget").addEventListener("click", async () => {
    await forgetSheets();
    await showFilmstrip(onOpen);
  });
}
