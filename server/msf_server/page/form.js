// The settings: what people set stays, and the rest follows the model's defaults.

import { markClass, setClass } from "./classes.js";
import { byId } from "./dom.js";

const NUMBERS = ["n", "seed", "first_index", "num_steps", "guidance_scale"];
const COMPARED = { num_steps: "b_num_steps", guidance_scale: "b_guidance_scale" };
const DEFAULT_NUM_IMAGES = 8;

const touched = new Set(); // fields that somebody has set

const sliderOf = (id) => document.querySelector(`[data-for="${id}"]`);

export const isComparing = () => byId("compare").checked;

function setNumber(id, value) {
  byId(id).value = value;
  const slider = sliderOf(id);
  if (!slider) return;
  slider.value = value;
  slider.style.setProperty("--fill", `${(100 * (slider.value - slider.min)) / (slider.max - slider.min)}%`);
}

function limit(id, max, value) {
  for (const input of [byId(id), sliderOf(id)]) if (input) input.max = max;
  setNumber(id, touched.has(id) ? byId(id).value : value);
}

export function renewSeed() {
  setNumber("seed", crypto.getRandomValues(new Uint32Array(1))[0]);
  setNumber("first_index", 0);
}

// Take over the limits and defaults of a model; the opening's class is the default one.
export function applyDefaults(model, label) {
  limit("n", model.max_n, Math.min(DEFAULT_NUM_IMAGES, model.max_n));
  limit("num_steps", model.max_num_steps, model.default_num_steps);
  limit("guidance_scale", model.max_guidance_scale, model.default_guidance_scale);
  if (!touched.has("prompt")) setClass(label);
  else markClass();
  byId("negative-field").hidden = !model.takes_negative;
}

// Take over those of a comparison's second model: half the steps, if it is the first model.
export function applyComparedDefaults(model, isSame) {
  limit("b_num_steps", model.max_num_steps, Math.max(2, Math.round(model.default_num_steps / (isSame ? 2 : 1))));
  limit("b_guidance_scale", model.max_guidance_scale, model.default_guidance_scale);
}

// Return the request's fields; an empty one is left to the service.
export function readFields() {
  const numbers = NUMBERS.filter((id) => byId(id).value !== "").map((id) => [id, Number(byId(id).value)])
    .filter(([id, value]) => id !== "first_index" || value !== 0);
  const negative = byId("negative-field").hidden ? "" : byId("negative_prompt").value.trim();
  return {
    ...(byId("model").value ? { model: byId("model").value } : {}), prompt: byId("prompt").value.trim(), ...Object.fromEntries(numbers),
    ...(negative ? { negative_prompt: negative } : {}),
  };
}

// Return the fields of the second setting, or null.
export function readCompared() {
  if (!isComparing()) return null;
  return { model: byId("b_model").value, num_steps: Number(byId("b_num_steps").value), guidance_scale: Number(byId("b_guidance_scale").value) };
}

// Fill in a request of the selected model. With `keepSeed`, its seed stays for the next requests.
export function writeFields({ prompt, negative_prompt, ...numbers }, { compared = null, keepSeed = true } = {}) {
  touched.add("prompt");
  setClass(prompt);
  byId("negative_prompt").value = negative_prompt ?? "";
  for (const id of NUMBERS.filter((name) => numbers[name] !== undefined)) {
    touched.add(id);
    setNumber(id, numbers[id]);
  }
  if (keepSeed) byId("renew-seed").checked = false;
  byId("compare").checked = compared !== null;
  for (const [name, id] of compared ? Object.entries(COMPARED) : []) {
    if (compared[name] === undefined) continue;
    touched.add(id);
    setNumber(id, compared[name]);
  }
  showCompared();
}

function showCompared() {
  byId("compared").hidden = !isComparing();
}

// `onChange` is called with the id of a field that somebody changed.
export function listenForFields(onChange) {
  byId("form").addEventListener("input", ({ target }) => {
    const id = target.name === "class" ? "prompt" : target.dataset.for ?? target.id;
    if (!id) return;
    touched.add(id);
    if (byId(id)?.type === "number") setNumber(id, target.value);
    if (id === "seed" || id === "first_index") byId("renew-seed").checked = false;
    showCompared();
    if (id === "compare" && isComparing()) byId("compared").scrollIntoView({ block: "nearest" });
    onChange(id);
  });
}
