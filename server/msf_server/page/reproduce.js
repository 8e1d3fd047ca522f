// A PNG made here, dropped on the page: what it tells of itself, and making it again.

import { createJob, jobEvents, ServiceError } from "./api.js";
import { readParameters } from "./png.js";
import { byId, element, showError } from "./view.js";

let dropped = null; // { bytes, parameters }

async function open(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const parameters = readParameters(bytes);
  byId("dropped").hidden = parameters === null;
  showError(parameters ? null : new ServiceError(`${file.name} is no PNG that was made here: it tells no parameters.`));
  if (!parameters) return;
  dropped = { bytes, parameters };
  byId("dropped-image").src = `data:image/png;base64,${btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))}`;
  byId("dropped-facts").replaceChildren(...Object.entries(facts(parameters)).flatMap(([name, value]) => [
    element("dt", "", name), element("dd", "", value),
  ]));
  byId("verdict").textContent = "";
  byId("remade").hidden = true;
  byId("again").disabled = false;
  byId("again").focus();
}

function facts({ model, version, label, seed, index, num_steps, guidance_scale, reproducibility, fingerprint }) {
  return {
    Model: `${model}:${version}`, Class: `${label}`, Seed: `${seed}, image ${index}`, Steps: `${num_steps}`,
    Guidance: `${guidance_scale}`, Made: `${reproducibility}ly, by ${fingerprint.slice(0, 12)}`,
  };
}

async function makeAgain(models) {
  const { bytes, parameters: p } = dropped;
  byId("again").disabled = true;
  byId("verdict").textContent = "Making it again…";
  showError(null);
  try {
    const model = models.find(({ id }) => id === `${p.model}:${p.version}`);
    if (!model) throw new ServiceError(`${p.model}:${p.version} is not served here.`);
    const { id } = await createJob({
      model: model.id, prompt: model.labels[p.label] ?? `${p.label}`, n: 1, seed: p.seed, first_index: p.index,
      num_steps: p.num_steps, guidance_scale: p.guidance_scale, reproducibility: p.reproducibility, cache: false,
    });
    const job = await lastOf(jobEvents(id));
    if (job.type !== "succeeded") throw new ServiceError(job.error?.message ?? `The job was ${job.type}.`);
    const made = Uint8Array.from(atob(job.data[0].b64_json), (character) => character.charCodeAt(0));
    byId("remade").src = `data:image/png;base64,${job.data[0].b64_json}`;
    byId("remade").hidden = false;
    byId("verdict").textContent = verdict(made, bytes, job.provenance.fingerprint === p.fingerprint);
  } catch (error) {
    byId("verdict").textContent = "";
    showError(error);
  } finally {
    byId("again").disabled = false;
  }
}

async function lastOf(events) {
  let last = null;
  for await (const event of events) last = event;
  return last;
}

function verdict(made, original, sameFingerprint) {
  if (made.length === original.length && made.every((byte, i) => byte === original[i])) return "Equal to the byte.";
  return sameFingerprint
    ? "Made by the same plans, but not equal to the byte."
    : "Not equal to the byte: other plans made it, which round in their own way.";
}

// `models` gives those that are served now.
export function listenForFiles(models) {
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) open(target.files[0]);
    target.value = "";
  });
  byId("again").addEventListener("click", () => makeAgain(models()));
  byId("close").addEventListener("click", () => { byId("dropped").hidden = true; });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) document.body.classList.remove("dragging");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });
}
