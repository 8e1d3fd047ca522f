// Client of the service's API.

export class ServiceError extends Error {
  constructor(message, param = null) {
    super(message);
    this.param = param; // the invalid field of the request, if any
  }
}

const IMAGES = "/v1/images/generations";
const JOBS = "/v1/jobs";
const API_KEY = "msf-api-key"; // in sessionStorage, which ends with the tab
const FINAL_EVENTS = new Set(["succeeded", "failed", "cancelled", "expired"]);
const MAX_RETRIES = 5;

export const apiKey = () => sessionStorage.getItem(API_KEY) ?? "";

export function setApiKey(key) {
  sessionStorage.setItem(API_KEY, key.trim());
}

export async function listModels() {
  return (await readBody(await request("/v1/models"))).data;
}

export async function isReady() {
  return fetch("/v2/health/ready").then(({ ok }) => ok, () => false);
}

// Return null if only operators may read the statistics.
export async function readStats() {
  const response = await fetch("/v1/stats").catch(() => null);
  return response?.ok ? response.json() : null;
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

// Yield the job's events, each with its `type`; resume after a lost connection.
export async function* jobEvents(id) {
  let lastId = null;
  for (let failures = 0; failures <= MAX_RETRIES; failures++) {
    const resume = lastId ? { "Last-Event-ID": lastId } : {};
    const response = await fetch(`${JOBS}/${id}/events`, { headers: { ...authorization(), ...resume } }).catch(() => null);
    if (response && !response.ok) await readBody(response);
    for await (const event of response ? serverSentEvents(response.body) : []) {
      failures = 0;
      lastId = event.id ?? lastId;
      yield event.data;
      if (FINAL_EVENTS.has(event.type)) return;
    }
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

export function asCurl(fields) {
  const body = JSON.stringify(fields).replaceAll("'", `'\\''`);
  const key = apiKey() ? ` \\\n  -H "Authorization: Bearer $MSF_API_KEY"` : ""; // the screen may be shared, so the key is not shown
  return `curl ${location.origin}${IMAGES}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}

export function asPython({ prompt, n, model, ...extensions }) {
  const standard = Object.entries({ model, prompt, n }).filter(([, value]) => value !== undefined);
  const keywords = standard.map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join("");
  const key = apiKey() ? `os.environ["MSF_API_KEY"]` : `"none"`;
  return `${apiKey() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1", api_key=${key})
images = client.images.generate(
${keywords}    extra_body=${JSON.stringify(extensions).replaceAll(/([:,])"?/g, (match) => match.replace(/^[:,]/, "$& "))},
)`;
}

function authorization() {
  return apiKey() ? { Authorization: `Bearer ${apiKey()}` } : {};
}

const unreachable = () => new ServiceError("The service cannot be reached. Is it still running?");

async function request(path, options) {
  return fetch(path, options).catch(() => { throw unreachable(); });
}

async function readBody(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const { message, param } = body?.error ?? { message: `The service responded with status ${response.status}.` };
  throw new ServiceError(message, response.status === 401 ? "key" : param);
}
