// Client of the service's API.

const JOBS = "/v1/jobs";
const API_KEY = "msf-api-key"; // in sessionStorage, which ends with the tab
const FINAL_EVENTS = new Set(["succeeded", "failed", "cancelled", "expired"]);
const MAX_RETRIES = 7;
const RETRY_UNREACHABLE_S = 2;

export class ServiceError extends Error {
  // `param` is the invalid field; `retryAfterS` is set if the same request may succeed later.
  constructor(message, { code = "", param = null, retryAfterS = null } = {}) {
    super(message);
    Object.assign(this, { code, param, retryAfterS });
  }
}

export const apiKey = () => sessionStorage.getItem(API_KEY) ?? "";

export function setApiKey(key) {
  sessionStorage.setItem(API_KEY, key.trim());
}

export async function listModels() {
  return (await readBody(await request("/v1/models"))).data;
}

// Return why the service is not ready: "" if it is ready, null if it does not answer.
export async function readiness() {
  const response = await fetch("/v2/health/ready").catch(() => null);
  if (!response) return null;
  return response.ok ? "" : (await response.json().catch(() => ({}))).error ?? `It responded with status ${response.status}.`;
}

// Return the statistics; null if the service does not answer, and undefined if only operators may read them.
export async function readStats() {
  const response = await fetch("/v1/stats").catch(() => null);
  if (!response) return null;
  return response.ok ? response.json() : undefined;
}

export async function createJob(fields) {
  return readBody(await request(JOBS, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization() },
    body: JSON.stringify(fields),
  }));
}

// `keepalive` lets the request outlive the page.
export function cancelJob(id) {
  return fetch(`${JOBS}/${id}`, { method: "DELETE", headers: authorization(), keepalive: true }).catch(() => null);
}

// Yield the job's events, each with its `type`, and `reconnecting` when the connection is lost; end when aborted.
export async function* jobEvents(id, signal = undefined) {
  let lastId = null;
  for (let failures = 0; failures <= MAX_RETRIES; failures++) {
    const resume = lastId ? { "Last-Event-ID": lastId } : {};
    const headers = { ...authorization(), ...resume };
    const response = await fetch(`${JOBS}/${id}/events`, { headers, signal }).catch(() => null);
    if (response && !response.ok) await readBody(response);
    for await (const event of response ? serverSentEvents(response.body) : []) {
      failures = 0;
      lastId = event.id ?? lastId;
      yield event.data;
      if (FINAL_EVENTS.has(event.type)) return;
    }
    if (signal?.aborted) return;
    yield { type: "reconnecting" };
    await new Promise((resolve) => setTimeout(resolve, 200 * 2 ** failures));
  }
  throw unreachable();
}

// Yield events until the stream ends, with or without an error.
async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const event = Object.fromEntries(part.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (event.event && event.event !== "error") yield { type: event.event, id: event.id, data: { type: event.event, ...JSON.parse(event.data) } };
    }
  }
}

function authorization() {
  return apiKey() ? { Authorization: `Bearer ${apiKey()}` } : {};
}

const unreachable = () => new ServiceError("No answer.", { code: "unreachable", retryAfterS: RETRY_UNREACHABLE_S });

async function request(path, options) {
  return fetch(path, options).catch(() => { throw unreachable(); });
}

async function readBody(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const { message, param, code } = body?.error ?? { message: `The service responded with status ${response.status}.` };
  throw new ServiceError(message, { code, param, retryAfterS: Number(response.headers.get("Retry-After")) || null });
}
