// The life of the jobs of one sheet, from submission to their images.

import { cancelJob, createJob, jobEvents, ServiceError } from "./api.js";
import { fileOf, tilesIn } from "./sheets.js";

const NUM_PREVIEWS = 2; // the base, and the residual half-way
const ENDED = { cancelled: "cancelled", expired: "deadline" };

export class Run {
  #abort = new AbortController();
  #ids = new Set(); // of the jobs that run

  // `report` is called with { tiles } that changed, { share, text } of progress, or { waiting: error } before a retry.
  constructor(sheet, report) {
    this.sheet = sheet;
    this.report = report;
  }

  get isCancelled() {
    return this.#abort.signal.aborted;
  }

  cancel() {
    this.#abort.abort();
    for (const id of this.#ids) cancelJob(id);
  }

  // Make all images; columns one after the other, so that their times can be compared. Raises the first ServiceError.
  async finish() {
    for (const column of this.sheet.columns) {
      if (this.isCancelled) return;
      const startedAt = performance.now();
      const progress = column.jobs.map(() => ({ done: 0, total: 0, stage: "" }));
      const ends = await Promise.allSettled(column.jobs.map((job, position) => this.#follow(job, progress, position)));
      const failure = ends.find(({ status }) => status === "rejected");
      if (failure && !this.isCancelled) throw failure.reason;
      const timings = ends.map(({ value }) => value).filter(Boolean);
      column.timings = timings.length ? timings.reduce((slowest, each) => (each.total_ms > slowest.total_ms ? each : slowest)) : null;
      column.roundTripMs = performance.now() - startedAt;
      if (column.timings && !this.isCancelled) this.report({ tiles: tilesIn(column), column });
    }
  }

  // Return the job's timings, or undefined if it was cancelled.
  async #follow({ fields, tiles }, progress, position) {
    const cache = this.sheet.mode === "compare" ? { cache: false } : {}; // measured now, not by an earlier request
    const job = await this.#submit({ ...fields, ...cache, partial_images: NUM_PREVIEWS });
    if (!job) return undefined;
    this.#ids.add(job.id);
    if (this.isCancelled) cancelJob(job.id);
    for await (const event of jobEvents(job.id, this.#abort.signal)) {
      if (event.type === "partial_image") this.#addPreview(tiles[event.index - fields.first_index], event);
      else if (event.type === "succeeded") return this.#end(job.id, tiles, event);
      else if (event.type in ENDED || event.type === "failed") {
        throw new ServiceError(event.error?.message ?? "", { code: event.error?.code ?? ENDED[event.type] });
      } else this.#showProgress(event, progress, position);
    }
    return undefined;
  }

  // Create a job, again while the service says that it may succeed later; undefined once cancelled.
  async #submit(fields) {
    while (!this.isCancelled) {
      try {
        return await createJob(fields);
      } catch (error) {
        if (!error.retryAfterS || error.code === "quota_exceeded") throw error;
        this.report({ waiting: error });
        await this.#pause(error.retryAfterS);
      }
    }
    return undefined;
  }

  #pause(seconds) {
    return new Promise((resolve) => {
      setTimeout(resolve, 1000 * seconds);
      this.#abort.signal.addEventListener("abort", resolve);
    });
  }

  #addPreview(tile, { b64_json, output_format, partial_image_index }) {
    tile.frames[partial_image_index] = fileOf(b64_json, output_format);
    this.report({ tiles: [tile] });
  }

  #end(id, tiles, { data, spec, timings }) {
    this.#ids.delete(id);
    tiles.forEach((tile, position) => {
      const { seed, num_steps, guidance_scale } = spec;
      Object.assign(tile.fields, { seed, num_steps, guidance_scale });
      tile.frames = [...tile.frames.filter(Boolean), fileOf(data[position].b64_json, spec.output_format)];
      tile.isFinal = true;
    });
    this.report({ tiles });
    return timings;
  }

  #showProgress(event, progress, position) {
    const own = progress[position];
    if (event.type === "queued") own.stage = event.position ? `${event.position} ahead in the queue` : "next in the queue";
    if (event.type === "reconnecting") own.stage = "connection lost, reconnecting";
    if (event.type === "progress") {
      const again = event.attempt > 1 ? `started again after a worker was lost; ` : "";
      Object.assign(own, { done: event.steps_done, total: event.num_steps, stage: `${again}${event.stage}` });
    }
    const started = progress.filter((each) => each.total > 0);
    const [done, total] = ["done", "total"].map((name) => started.reduce((sum, each) => sum + each[name], 0));
    const { stage } = started.length ? started.reduce((first, each) => (each.done / each.total < first.done / first.total ? each : first)) : own;
    this.report({ share: total ? done / total : 0, text: total ? `${stage}, step ${done} of ${total}` : stage });
  }
}
