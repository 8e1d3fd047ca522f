// The page: connects the settings, the sheet, the history and the service.

import { apiKey, setApiKey } from "./api.js";
import { listenForClasses, showClasses } from "./classes.js";
import { listenForDevelopment } from "./develop.js";
import { byId, copyText, flash, nextTask } from "./dom.js";
import { showError } from "./errors.js";
import { listenForForgetting, showFilmstrip } from "./filmstrip.js";
import {
  applyComparedDefaults, applyDefaults, isComparing, listenForFields, readCompared, readFields, renewSeed, writeFields,
} from "./form.js";
import { loadGallery, loadOpening } from "./gallery.js";
import { cancel, downloadAll, generate, isRunning, show, showNothing, shownSheet } from "./generate.js";
import { findSheet, listSheets } from "./history.js";
import { listenForLightbox } from "./lightbox.js";
import { fromQuery, toQuery } from "./link.js";
import { allModels, comparedModel, isLoadingSome, refreshModels, selectedModel, selectModel } from "./models.js";
import { listenForFiles } from "./reproduce.js";
import { makeSheet } from "./sheets.js";
import { listenForCode, showCode } from "./snippets.js";
import { watchHealth, watchStats } from "./status.js";

const link = fromQuery(location.search);
let opening = null;

// Show a model's classes and defaults; with `isOpened`, its opening first.
async function showModel({ isOpened = false } = {}) {
  const model = selectedModel();
  const arrival = loadGallery(model);
  const ownOpening = await loadOpening(model);
  if (isOpened && ownOpening) show(ownOpening, { isAnimated: true });
  const gallery = await arrival;
  await nextTask();
  if (model !== selectedModel()) return; // another was selected meanwhile
  opening = ownOpening;
  showClasses(model.labels, gallery);
  applyDefaults(model, opening?.fields.prompt ?? model.labels[0]);
  showComparedModel();
}

function showComparedModel() {
  applyComparedDefaults(comparedModel(), comparedModel() === selectedModel());
  showForm();
}

// Show what depends on the fields.
function showForm() {
  if (!isRunning()) byId("generate-text").textContent = isComparing() ? "Compare" : "Generate";
  showCode(readFields());
}

async function arrive() {
  if (!(await refreshModels({ model: link?.fields.model, b_model: link?.compared?.model }))) return;
  showError(null);
  await showModel({ isOpened: !link });
  byId("generate").disabled = false;
  if (link) await openQuery(link);
  else if (!opening) await showLatest();
}

async function showLatest() {
  const [latest] = await listSheets();
  if (latest) show(latest);
  else showNothing();
}

// Show the sheet of a share link from the history, or make it.
async function openQuery({ mode, compared }) {
  const fields = readFields();
  const sheet = await findSheet(toQuery({ mode, fields, compared: compared && readCompared() }));
  if (sheet && !sheet.isPartial) show(sheet);
  else run(mode, fields);
}

function run(mode, fields) {
  const model = allModels().find(({ id }) => id === fields.model) ?? selectedModel();
  const sheet = makeSheet({ mode, fields, compared: mode === "compare" ? readCompared() : null, model });
  return generate(sheet, { onKeep: rememberInUrl, onFailure: showFailure, onOpen: openSheet });
}

function rememberInUrl({ query }) {
  if (location.search !== query) history.pushState(null, "", query);
}

function showFailure(error) {
  showError(error, (label) => {
    const [prompt, negative_prompt] = ["prompt", "negative_prompt"].map((id) => byId(id).value);
    writeFields({ prompt, negative_prompt, [error.param]: label }, { keepSeed: false });
    showError(null);
    showForm();
  });
  if (error.code !== "invalid_api_key") return;
  byId("key-field").hidden = false;
  byId("key").focus();
}

// Show a sheet of the history, with its settings.
async function openSheet(sheet) {
  if (isRunning()) return;
  show(sheet);
  rememberInUrl(sheet);
  byId("stage").scrollIntoView({ block: "start", behavior: "smooth" });
  await useFields(sheet.fields, { compared: sheet.compared, keepSeed: false });
}

async function useFields(fields, options) {
  if (fields.model !== byId("model").value) {
    selectModel("model", fields.model);
    await showModel();
  }
  if (options.compared) selectModel("b_model", options.compared.model);
  writeFields(fields, options);
  showForm();
}

async function submit() {
  if (isRunning() || !selectedModel()) return;
  if (byId("renew-seed").checked || byId("seed").value === "") renewSeed();
  showForm();
  await run(isComparing() ? "compare" : "generate", readFields());
}

function listen() {
  listenForFields(async (id) => {
    if (id === "model") await showModel();
    if (id === "b_model") showComparedModel();
    if (id === "key") setApiKey(byId("key").value);
    showForm();
  });
  listenForClasses(showForm);
  byId("negative_prompt").addEventListener("focus", () => {
    byId("negative-classes").replaceChildren(...(selectedModel()?.labels ?? []).map((label) => new Option(label)));
  });
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("random-seed").addEventListener("click", () => {
    renewSeed();
    showForm();
  });
  byId("cancel").addEventListener("click", cancel);
  byId("zip").addEventListener("click", downloadAll);
  byId("share").addEventListener("click", async () => {
    const isCopied = await copyText(location.origin + location.pathname + shownSheet().query);
    flash(byId("share"), isCopied ? "Copied" : "Not copied");
  });
  listenForLightbox({
    onUse: async (fields) => {
      await useFields({ ...fields, n: 1 }, {});
      byId("generate").focus();
    },
    onVary: (fields) => { if (!isRunning()) run("vary", fields); },
  });
  listenForDevelopment();
  listenForForgetting(openSheet);
  listenForFiles(allModels);
  listenForCode(readFields);
  addEventListener("pagehide", cancel); // nobody would see the result
  addEventListener("popstate", async () => {
    const sheet = (await findSheet(location.search)) ?? opening;
    if (sheet && !isRunning()) show(sheet);
  });
}

listen();
byId("key").value = apiKey();
byId("key-field").hidden = !apiKey();
renewSeed();
if (link) writeFields(link.fields, { compared: link.compared });
showFilmstrip(openSheet);
let arriving = arrive().catch(showError);
watchHealth(async () => {
  await arriving;
  if (!selectedModel()) arriving = arrive().catch(showError);
  else if (isLoadingSome()) await refreshModels().catch(() => null);
  return !selectedModel();
});
watchStats();
