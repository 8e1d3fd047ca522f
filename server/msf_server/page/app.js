// The page's controls and the life of one request.

import {
  apiKey, asCurl, asPython, cancelJob, createJob, isReady, jobEvents, listModels, readStats, ServiceError, setApiKey,
} from "./api.js";
import { listenForFiles } from "./reproduce.js";
import {
  byId, showError, showImages, showNothing, showPreview, showProgress, showStats, showTimings, showWaiting,
} from "./view.js";

const MAX_CHIPS = 40; // beyond this number, classes are searched instead of listed
const NUM_PREVIEWS = 2; // the base, and the residual half-way
const STATS_EVERY_MS = 3000;
const NUMBER_FIELDS = ["n", "seed", "num_steps", "guidance_scale"];

let models = [];
let running = null; // the current job, with its id once it has one

const sliderOf = (id) => document.querySelector(`[data-for="${id}"]`);
const model = () => models.find(({ id }) => id === byId("model").value);
const hasChips = () => model().labels.length <= MAX_CHIPS;

function prompt() {
  return hasChips() ? document.querySelector("#chips input:checked").value : byId("search").value;
}

function requestFields() {
  const numbers = NUMBER_FIELDS.filter((id) => byId(id).value !== "").map((id) => [id, Number(byId(id).value)]);
  const choice = models.length > 1 ? { model: model().id } : {};
  return { ...choice, prompt: prompt(), ...Object.fromEntries(numbers) };
}

function setNumber(id, value) {
  byId(id).value = value;
  const slider = sliderOf(id);
  if (!slider) return;
  slider.value = value;
  slider.style.setProperty("--fill", `${(100 * (slider.value - slider.min)) / (slider.max - slider.min)}%`);
}

function renewSeed() {
  setNumber("seed", crypto.getRandomValues(new Uint32Array(1))[0]);
}

function limit(id, max, value) {
  for (const input of [byId(id), sliderOf(id)]) input.max = max;
  setNumber(id, value);
}

function showCode() {
  const format = byId("as-python").checked ? asPython : asCurl;
  if (models.length) byId("code").textContent = format(requestFields());
}

function chip(label, index) {
  const choice = document.createElement("label");
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "class", value: label });
  radio.checked = index === 0;
  const text = document.createElement("span");
  text.textContent = label;
  choice.append(radio, text);
  return choice;
}

function showModel() {
  const { labels, max_n, max_num_steps, default_num_steps, max_guidance_scale, default_guidance_scale } = model();
  byId("chips").hidden = !hasChips();
  byId("search-field").hidden = hasChips();
  byId("chips").replaceChildren(...(hasChips() ? labels.map(chip) : []));
  byId("labels").replaceChildren(...(hasChips() ? [] : labels.map((label) => new Option(label, label))));
  byId("search").value = labels[Math.floor(Math.random() * labels.length)]; // a working example from the start
  limit("n", max_n, Math.min(byId("n").value || 4, max_n));
  limit("num_steps", max_num_steps, default_num_steps);
  limit("guidance_scale", max_guidance_scale, default_guidance_scale);
  showCode();
}

async function loadModels() {
  models = await listModels();
  if (!models.length) throw new ServiceError("No worker has registered a model yet. This page is waiting for one.");
  byId("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  byId("model").value = (models.find(({ served }) => served) ?? models[0]).id;
  byId("model-field").hidden = models.length === 1;
  byId("generate").disabled = false;
  showError(null);
  showModel();
}

async function watchHealth() {
  const ready = await isReady();
  byId("health").className = `health ${ready ? "ready" : "away"}`;
  byId("health").textContent = ready ? "ready" : "not ready";
  if (!models.length) await loadModels().catch(showError);
  setTimeout(watchHealth, models.length ? 10000 : 2000);
}

async function watchStats() {
  if (!document.hidden) showStats(await readStats());
  setTimeout(watchStats, STATS_EVERY_MS);
}

function setRunning(job) {
  running = job;
  byId("generate").disabled = running !== null;
  byId("generate").setAttribute("aria-busy", running !== null);
  byId("generate-text").textContent = running ? "Generating…" : "Generate";
  byId("cancel").hidden = running === null;
}

async function run() {
  if (byId("renew-seed").checked) renewSeed();
  showCode();
  const fields = requestFields();
  setRunning({ id: null, isCancelled: false });
  showError(null);
  showWaiting(Math.min(Math.max(fields.n ?? 1, 1), model().max_n), model().image_size);
  byId("summary").textContent = "Generating…";
  byId("images").scrollIntoView({ block: "nearest", behavior: "smooth" });
  const startedAt = performance.now();
  try {
    const { id } = await createJob({ ...fields, partial_images: NUM_PREVIEWS });
    running.id = id;
    if (running.isCancelled) cancelJob(id);
    await follow(id, fields.prompt, startedAt);
  } catch (error) {
    showNothing();
    byId("summary").textContent = "";
    showError(error);
    if (error.param === "key") askForKey();
  } finally {
    showProgress(null);
    setRunning(null);
  }
}

async function follow(id, label, startedAt) {
  for await (const event of jobEvents(id)) {
    switch (event.type) {
      case "queued":
        showProgress(0, event.position ? `${event.position} ${event.position > 1 ? "jobs" : "job"} ahead in the queue` : "next in the queue");
        break;
      case "progress":
        showProgress(event.steps_done / event.num_steps, `${event.stage}, step ${event.steps_done} of ${event.num_steps}`);
        break;
      case "partial_image":
        showPreview(event.index, event);
        break;
      case "succeeded":
        showImages(event, label);
        showTimings(event.timings, performance.now() - startedAt);
        byId("summary").textContent = `${event.data.length} × ${label}, seed ${event.spec.seed}, `
          + `${event.spec.num_steps} steps, guidance ${event.spec.guidance_scale}`;
        break;
      case "cancelled":
        showNothing();
        byId("summary").textContent = "Cancelled.";
        break;
      default:
        throw new ServiceError(event.error?.message ?? `The job has ${event.type}.`);
    }
  }
}

function cancel() {
  if (!running) return;
  running.isCancelled = true;
  if (running.id) cancelJob(running.id);
}

function askForKey() {
  byId("key-field").hidden = false;
  byId("key").focus();
}

async function copyCode() {
  const selection = getSelection();
  selection.selectAllChildren(byId("code"));
  // The clipboard API exists on secure origins only; the deprecated command works elsewhere.
  const copied = navigator.clipboard
    ? await navigator.clipboard.writeText(byId("code").textContent).then(() => true, () => false)
    : document.execCommand("copy");
  if (copied) selection.removeAllRanges();
  byId("copy").textContent = copied ? "Copied" : "Selected";
  setTimeout(() => { byId("copy").textContent = "Copy"; }, 1500);
}

byId("form").addEventListener("input", ({ target }) => {
  const number = target.dataset.for ?? target.id;
  if (NUMBER_FIELDS.includes(number)) setNumber(number, target.value);
  if (target.id === "model") showModel();
  if (target.id === "key") setApiKey(target.value);
  if (target.id === "seed") byId("renew-seed").checked = false;
  showCode();
});
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && models.length) run();
});
byId("random-seed").addEventListener("click", () => {
  renewSeed();
  showCode();
});
byId("cancel").addEventListener("click", cancel);
addEventListener("pagehide", cancel); // nobody would see the result
for (const id of ["as-curl", "as-python"]) byId(id).addEventListener("change", showCode);
listenForFiles(() => models);
byId("copy").addEventListener("click", copyCode);

byId("key").value = apiKey();
byId("key-field").hidden = !apiKey();
renewSeed();
watchHealth();
watchStats();
