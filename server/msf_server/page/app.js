// The page's controls: what is asked for, and when.

import {
  apiKey, asCurl, asPython, cancelJob, createJob, isReady, jobEvents, listModels, readStats, ServiceError, setApiKey,
} from "./api.js";
import { listenForFiles } from "./reproduce.js";
import {
  byId, showError, showImages, showNothing, showPreview, showProgress, showStats, showTimings, showWaiting,
} from "./view.js";

const CHIPS_UP_TO = 40; // more classes than this are searched, not shown
const PREVIEWS = 2; // the base, and the residual half-way
const STATS_EVERY_MS = 3000;
const NUMBERS = ["n", "seed", "num_steps", "guidance_scale"];

let models = [];
let running = null; // the job under way: its id, once it has one

const sliderOf = (id) => document.querySelector(`[data-for="${id}"]`);
const model = () => models.find(({ id }) => id === byId("model").value);
const hasChips = () => model().labels.length <= CHIPS_UP_TO;

function prompt() {
  return hasChips() ? document.querySelector("#chips input:checked").value : byId("search").value;
}

function request() {
  const numbers = NUMBERS.filter((id) => byId(id).value !== "").map((id) => [id, Number(byId(id).value)]);
  const named = models.length > 1 ? { model: model().id } : {};
  return { ...named, prompt: prompt(), ...Object.fromEntries(numbers) };
}

function setNumber(id, value) {
  byId(id).value = value;
  const slider = sliderOf(id);
  if (!slider) return;
  slider.value = value;
  slider.style.setProperty("--fill", `${(100 * (slider.value - slider.min)) / (slider.max - slider.min)}%`);
}

function rollSeed() {
  setNumber("seed", crypto.getRandomValues(new Uint32Array(1))[0]);
}

function limit(id, max, value) {
  for (const input of [byId(id), sliderOf(id)]) input.max = max;
  setNumber(id, value);
}

function showCode() {
  const write = byId("as-python").checked ? asPython : asCurl;
  if (models.length) byId("code").textContent = write(request());
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
  byId("search").value = labels[Math.floor(Math.random() * labels.length)]; // there is something to see at once
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
  if (byId("reroll").checked) rollSeed();
  showCode();
  const asked = request();
  setRunning({ id: null, isCancelled: false });
  showError(null);
  showWaiting(Math.min(Math.max(asked.n ?? 1, 1), model().max_n), model().image_size);
  byId("summary").textContent = "Working…";
  byId("images").scrollIntoView({ block: "nearest", behavior: "smooth" });
  const started = performance.now();
  try {
    const { id } = await createJob({ ...asked, partial_images: PREVIEWS });
    running.id = id;
    if (running.isCancelled) cancelJob(id);
    await follow(id, asked.prompt, started);
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

async function follow(id, label, started) {
  for await (const event of jobEvents(id)) {
    switch (event.type) {
      case "queued":
        showProgress(0, event.position ? `${event.position} ${event.position > 1 ? "jobs" : "job"} before this one` : "next in the queue");
        break;
      case "progress":
        showProgress(event.steps_done / event.num_steps, `${event.stage}, step ${event.steps_done} of ${event.num_steps}`);
        break;
      case "partial_image":
        showPreview(event.index, event);
        break;
      case "succeeded":
        showImages(event, label);
        showTimings(event.timings, performance.now() - started);
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
  // The clipboard API exists on secure origins only; the old command works everywhere else.
  const copied = navigator.clipboard
    ? await navigator.clipboard.writeText(byId("code").textContent).then(() => true, () => false)
    : document.execCommand("copy");
  if (copied) selection.removeAllRanges();
  byId("copy").textContent = copied ? "Copied" : "Selected";
  setTimeout(() => { byId("copy").textContent = "Copy"; }, 1500);
}

byId("form").addEventListener("input", ({ target }) => {
  const number = target.dataset.for ?? target.id;
  if (NUMBERS.includes(number)) setNumber(number, target.value);
  if (target.id === "model") showModel();
  if (target.id === "key") setApiKey(target.value);
  if (target.id === "seed") byId("reroll").checked = false;
  showCode();
});
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && models.length) run();
});
byId("dice").addEventListener("click", () => {
  rollSeed();
  showCode();
});
byId("cancel").addEventListener("click", cancel);
addEventListener("pagehide", cancel); // nobody would see what it makes
for (const id of ["as-curl", "as-python"]) byId(id).addEventListener("change", showCode);
listenForFiles(() => models);
byId("copy").addEventListener("click", copyCode);

byId("key").value = apiKey();
byId("key-field").hidden = !apiKey();
rollSeed();
watchHealth();
watchStats();
