// What the service ships of its own models: thumbnails and groups of classes, and a sheet to open on.

import { openingSheet } from "./sheets.js";

const SHIPPED = new Set(["emoji", "fashion-mnist"]);

const fileUrl = (name) => new URL(`./gallery/${name}`, import.meta.url).href;

const readJson = (name) => fetch(fileUrl(name)).then((response) => (response.ok ? response.json() : null), () => null);

// Return the gallery of a model: { sets: [{ title, file, labels }], columns, groups: [{ title, labels }] }.
export async function loadGallery({ name, labels }) {
  const files = SHIPPED.has(name) ? await readJson(`${name}.json`) : null;
  const isOwn = files?.thumbnails.every((set) => set.labels.every((label) => labels.includes(label)));
  if (!isOwn) return { sets: [], columns: 1, groups: [{ title: "Classes", labels }] }; // another model of this name
  return {
    sets: files.thumbnails.map(({ file, ...set }) => ({ ...set, file: fileUrl(file) })),
    columns: files.columns,
    groups: files.groups.map(({ title, ids }) => ({ title, labels: ids.map((id) => labels[id]) })),
  };
}

// Return the sheet that the page opens on, or null.
export async function loadOpening(model) {
  const opening = SHIPPED.has(model.name) ? await readJson(`${model.name}.opening.json`) : null;
  return opening && opening.spec.label < model.labels.length ? openingSheet(opening, model) : null;
}
