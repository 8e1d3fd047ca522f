// One press of Generate: shows its sheet while it is made, and keeps what is done when it ends or is cancelled.

import { announce, byId, saveFile } from "./dom.js";
import { developFully, playLater } from "./develop.js";
import { sentence, showError } from "./errors.js";
import { showFilmstrip } from "./filmstrip.js";
import { counted } from "./format.js";
import { keepSheet } from "./history.js";
import { openLightbox } from "./lightbox.js";
import { Run } from "./run.js";
import { fileName, tilesOn } from "./sheets.js";
import { describe, isPixelated, showNoSheet, showSheet, updateTile } from "./sheet_view.js";
import { whyWaiting } from "./status.js";
import { showTimings } from "./timings.js";
import { zip } from "./zip.js";

let shown = null; // the sheet on the page
let running = null; // the Run of the sheet that is being made

export const shownSheet = () => shown;
export const isRunning = () => running !== null;
export const cancel = () => running?.cancel();

// Show a sheet that is made; `opens` is called with a sheet picked from the history.
export function show(sheet, { isAnimated = false } = {}) {
  shown = sheet;
  showSheet(sheet, (tile) => openLightbox(tile, tilesInOrder(sheet), isPixelated(sheet)));
  const column = sheet.columns.at(-1);
  const { timings } = column;
  showTimings(column);
  byId("first-frame").textContent = timings && !("base_ms" in timings) ? "early" : "base"; // of a model with one stage
  for (const id of ["share", "zip", "play", "develop"]) byId(id).disabled = false;
  developFully();
  if (isAnimated) playLater();
}

export function showNothing() {
  shown = null;
  for (const id of ["share", "zip", "play", "develop"]) byId(id).disabled = true;
  showNoSheet();
}

// The two settings of a comparison alternate, so that one step in the lightbox compares the same image.
function tilesInOrder(sheet) {
  const columns = sheet.columns.map(({ jobs }) => jobs.flatMap(({ tiles }) => tiles));
  const length = Math.max(...columns.map((tiles) => tiles.length));
  return Array.from({ length }, (_, position) => columns.map((tiles) => tiles[position])).flat().filter(Boolean);
}

// Make a sheet. `onKeep` is called with a sheet that has images; `onFailure` takes an error.
export async function generate(sheet, { onKeep, onFailure, onOpen }) {
  const before = shown;
  showError(null);
  setRunning(new Run(sheet, (report) => showReport(sheet, report)));
  show(sheet);
  showProgress(0, "sending");
  byId("stage").scrollIntoView({ block: "nearest", behavior: "smooth" });
  const failure = await running.finish().then(() => null, (error) => error);
  if (failure) running.cancel();
  const { isCancelled } = running;
  const numAsked = tilesOn(sheet).length;
  sheet.isPartial = isCancelled;
  dropUnmade(sheet);
  const numKept = tilesOn(sheet).length;
  showProgress(null);
  setRunning(null);
  if (numKept) {
    show(sheet);
    onKeep(sheet);
    await keepSheet(sheet);
    await showFilmstrip(onOpen);
  } else if (before) {
    show(before);
  } else {
    showNothing();
  }
  if (failure) onFailure(failure);
  const outcome = isCancelled ? `Cancelled: ${numKept} of ${counted(numAsked, "image")} kept.` : `${counted(numKept, "image")} of ${sheet.fields.prompt} made.`;
  if (isCancelled && !failure) byId("stage-text").textContent = outcome;
  if (!failure) announce(outcome);
}

function dropUnmade(sheet) {
  for (const column of sheet.columns) {
    for (const job of column.jobs) job.tiles = job.tiles.filter(({ frames }) => frames.length);
  }
  sheet.columns = sheet.columns.filter((column) => column.jobs.some(({ tiles }) => tiles.length));
}

function showReport(sheet, { tiles = [], column, share, text, waiting }) {
  tiles.forEach(updateTile);
  if (column) {
    describe(sheet);
    showTimings(column);
  }
  if (share !== undefined) showProgress(share, text);
  if (waiting) showProgress(0, `${sentence(waiting)} Trying again until it is back.`);
}

// Show the share of the work that is done, 0 to 1, and what happens to the rest; null hides it.
function showProgress(share, text = "") {
  byId("progress").hidden = share === null;
  byId("progress").value = share ?? 0;
  byId("stage-text").textContent = [text, share === null ? "" : whyWaiting()].filter(Boolean).join(" · ");
}

function setRunning(run) {
  running = run;
  byId("generate").setAttribute("aria-busy", run !== null);
  byId("generate").disabled = run !== null;
  byId("generate-text").textContent = run ? "Generating…" : byId("compare").checked ? "Compare" : "Generate";
  byId("cancel").hidden = run === null;
}

export async function downloadAll() {
  const made = tilesOn(shown).filter(({ frames }) => frames.length);
  const entries = await Promise.all(made.map(async (tile, position) => ({
    name: `${shown.mode === "generate" ? "" : `${position}-`}${fileName(tile)}`, bytes: new Uint8Array(await tile.frames.at(-1).arrayBuffer()),
  })));
  const { mode, fields, compared } = shown;
  const parameters = new TextEncoder().encode(`${JSON.stringify({ mode, fields, compared }, null, 2)}\n`);
  saveFile(zip([...entries, { name: "parameters.json", bytes: parameters }]), `${fields.prompt.replaceAll(/\W+/g, "-")}-seed${fields.seed}.zip`);
}
