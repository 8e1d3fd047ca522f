// Errors of the service in the page's words.

import { byId, element } from "./dom.js";

const FIELD_NAMES = {
  prompt: "Class", model: "Model", n: "Number of images", seed: "Seed", first_index: "First image", num_steps: "Steps",
  guidance_scale: "Guidance", negative_prompt: "Away from",
};

const SENTENCES = {
  unreachable: "The service does not answer.",
  invalid_api_key: "This service wants an API key. Enter the one its operator gave you.",
  missing_scope: "This API key may not generate images. Ask the operator for one that may.",
  model_not_found: "This model is no longer here. Choose another.",
  model_not_loaded: "This model has been unloaded. Choose another.",
  queue_full: "The queue is full.",
  storage_full: "The service's memory is full of results. It frees up as they expire.",
  rate_limit_exceeded: "That was too much at once for this key or address.",
  quota_exceeded: "Today's quota of this API key is used up.",
  draining: "This server is shutting down; another should take over.",
  no_worker: "No worker runs this model at the moment; it is probably restarting.",
  queue_unavailable: "The service cannot reach its queue.",
  timeout: "There is too much ahead of this request for it to end in time. Ask for fewer images or steps.",
  deadline: "The request did not end in time. Ask for fewer images or steps, or try again later.",
  poisoned: "Every worker that tried these images failed. Try another seed.",
  non_finite: "The model's numbers overflowed for these settings. Try a lower guidance.",
  engine_error: "The worker failed at these images. Try again; its log has the cause.",
  fingerprint_gone: "The worker that could make exactly these images is gone. Try again.",
  result_gone: "The images expired before they were read. Try again.",
  internal_error: "The service failed at this; its log has the cause.",
};

// Return a sentence for people.
export function sentence(error) {
  const [, value, scope, allowed] = error.message.match(/^Invalid \w+: (.*?)\. Allowed( with [^:]*)?: (.*?)\.?$/s) ?? [];
  const field = FIELD_NAMES[error.param];
  if (error.code === "unknown_class") return `The model knows no class ${error.message.match(/".*?"/)?.[0] ?? "of this name"}.`;
  if (field && allowed) return `${field} cannot be ${value}. Allowed${(scope ?? "").replaceAll("num_steps", "steps")}: ${allowed}.`;
  return SENTENCES[error.code] ?? error.message;
}

// Return the classes that the service suggests for one it does not know.
function suggestions({ code, message }) {
  const closest = code === "unknown_class" ? message.match(/Closest: (.*)\.$/)?.[1] : null;
  return closest ? JSON.parse(`[${closest}]`) : [];
}

// Show an error above the button, and mark its field; null hides it. `onPick` takes a suggested class.
export function showError(error, onPick = () => {}) {
  const box = byId("error");
  box.hidden = error === null;
  box.replaceChildren(error ? sentence(error) : "");
  const classes = error ? suggestions(error) : [];
  if (classes.length) {
    const buttons = classes.map((label) => element("button", { type: "button", className: "small", textContent: label, onclick: () => onPick(label) }));
    box.append(element("span", { className: "suggestions" }, "Did you mean ", ...buttons));
  }
  for (const input of byId("form").querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  if (error?.param) byId(error.param)?.setAttribute("aria-invalid", "true");
}
