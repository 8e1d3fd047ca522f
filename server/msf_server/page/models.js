// The models of the service, and which of them are selected.

import { listModels } from "./api.js";
import { byId } from "./dom.js";

let models = [];

export const allModels = () => models;
export const selectedModel = () => models.find(({ id }) => id === byId("model").value);
export const comparedModel = () => models.find(({ id }) => id === byId("b_model").value);
export const isLoadingSome = () => models.length === 0 || models.some(({ served }) => !served);

// Read the models and list them; those selected stay selected. Return whether there is any.
export async function refreshModels(wanted = {}) {
  const before = JSON.stringify(models);
  models = await listModels();
  if (JSON.stringify(models) === before) return models.length > 0; // an open list of options stays open
  for (const id of ["model", "b_model"]) {
    const chosen = byId(id).value || wanted[id];
    byId(id).replaceChildren(...models.map((model) => new Option(model.served ? model.id : `${model.id} (not served now)`, model.id)));
    byId(id).value = models.some((model) => model.id === chosen) ? chosen : preferred(id);
  }
  return models.length > 0;
}

// The model with the largest images; to compare with it, another of the same classes, such as one that needs fewer steps.
function preferred(id) {
  if (id === "b_model" && selectedModel()) {
    const { id: own, image_size, labels } = selectedModel();
    const sibling = models.find((model) => model.id !== own && model.served && model.image_size === image_size && model.labels.length === labels.length);
    return sibling?.id ?? own;
  }
  const served = models.filter((model) => model.served);
  return [...(served.length ? served : models)].sort((one, other) => other.image_size - one.image_size)[0]?.id ?? "";
}

// Select a model in a field, if it is there.
export function selectModel(field, id) {
  if (models.some((model) => model.id === id)) byId(field).value = id;
}
