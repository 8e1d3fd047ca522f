// A sheet: what one press of Generate makes. Plain data, so that the browser can store it.
//
// sheet:  { id, mode, fields, compared, query, imageSize, createdAt, isPartial, columns }
// column: { name, fields, jobs: [{ fields, tiles }], timings, roundTripMs }
// tile:   { fields, caption, frames: [Blob], isFinal }; the last frame is the image, or as far as it got

import { toQuery } from "./link.js";

const MAX_JOBS = 4; // of one column: a browser has six connections, and each job's events take one
const MIN_JOB_IMAGES = 8;
const NUM_VARIATIONS = 8;
const MAX_TILES = 64; // to show of a number of images that is not valid

export function makeSheet({ mode, fields: sent, compared = null, model }) {
  const fields = { n: 1, first_index: 0, ...sent };
  return {
    id: `${Date.now()}-${Math.random().toString(36).slice(2)}`,
    mode, fields, compared,
    query: toQuery({ mode, fields, compared }),
    imageSize: model.image_size,
    createdAt: Date.now(),
    isPartial: false, // it was cancelled or failed, and keeps what was done
    columns: MODES[mode](fields, compared, model),
  };
}

// A request of many images is split, so that those of the jobs that have ended are kept when the others are cancelled.
function split(fields, { max_n }) {
  if (!(Number.isInteger(fields.n) && fields.n <= max_n)) return [fields]; // which the service refuses
  const size = Math.max(MIN_JOB_IMAGES, Math.ceil(fields.n / MAX_JOBS));
  const starts = Array.from({ length: Math.ceil(fields.n / size) }, (_, job) => job * size);
  return starts.map((start) => ({ ...fields, n: Math.min(size, fields.n - start), first_index: fields.first_index + start }));
}

// The same noise with other settings.
function variations(fields, model) {
  const { num_steps: steps, guidance_scale: guidance } = fields;
  const guidances = [1, 1.3, 2, 3, 4].map((factor) => Math.min(factor === 1 ? 1 : Number((factor * guidance).toFixed(1)), model.max_guidance_scale));
  const counts = [0.25, 0.5, 2].map((factor) => Math.min(Math.max(2, Math.round(factor * steps)), model.max_num_steps));
  const others = [
    ...guidances.map((guidance_scale) => ({ guidance_scale })), ...counts.map((num_steps) => ({ num_steps })),
  ].filter((change) => Object.entries(change).some(([name, value]) => fields[name] !== value));
  return [{}, ...others].slice(0, NUM_VARIATIONS).map((change) => ({ ...fields, n: 1, ...change }));
}

const MODES = {
  generate: (fields, _, model) => [column("", fields, split(fields, model))],
  compare: (fields, compared, model) => [["A", fields], ["B", { ...fields, ...compared }]]
    .map(([name, own]) => column(name, own, split(own, model))),
  vary: (fields, _, model) => [column("", fields, variations(fields, model), (each) => changes(each, fields))],
};

function column(name, fields, requests, caption = ({ first_index }) => `#${first_index}`) {
  const jobs = requests.map((request) => ({ fields: request, tiles: tilesOf(request, caption) }));
  return { name, fields, jobs, timings: null, roundTripMs: null };
}

function tilesOf(fields, caption) {
  return Array.from({ length: Math.max(1, Math.min(Math.trunc(fields.n), MAX_TILES)) }, (_, position) => {
    const own = { ...fields, n: 1, first_index: fields.first_index + position };
    return { fields: own, caption: caption(own), frames: [], isFinal: false };
  });
}

function changes(own, original) {
  if (own.num_steps !== original.num_steps) return `${own.num_steps} steps`;
  return own.guidance_scale === original.guidance_scale ? "original" : `guidance ${own.guidance_scale}`;
}

// Return the sheet of an opening that the service ships, whose frames are base64 in the order of its images.
export function openingSheet({ spec, timings, frames }, model) {
  const fields = {
    model: model.id, prompt: model.labels[spec.label], n: spec.num_samples, seed: spec.seed, first_index: spec.first_index,
    num_steps: spec.num_steps, guidance_scale: spec.guidance_scale,
  };
  const sheet = makeSheet({ mode: "generate", fields, model });
  tilesOn(sheet).forEach((tile, position) => {
    tile.frames = frames[position].map((text) => fileOf(text, spec.output_format));
    tile.isFinal = true;
  });
  sheet.columns[0].timings = timings;
  return sheet;
}

export const tilesIn = (column) => column.jobs.flatMap(({ tiles }) => tiles);

export const tilesOn = (sheet) => sheet.columns.flatMap(tilesIn);

// Return the file of an image or preview; `text` is its base64.
export function fileOf(text, format) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let position = 0; position < bytes.length; position++) bytes[position] = characters.charCodeAt(position);
  return new Blob([bytes], { type: `image/${format}` });
}

export function fileName({ fields, frames, isFinal }) {
  const extension = frames.at(-1).type.split("/")[1];
  const settings = `seed${fields.seed}-${fields.first_index}-${fields.num_steps}steps-g${fields.guidance_scale}`;
  return `${fields.prompt.replaceAll(/[^\p{L}\p{N}]+/gu, "-")}-${settings}${isFinal ? "" : "-unfinished"}.${extension}`;
}
