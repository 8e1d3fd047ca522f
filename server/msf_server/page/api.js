// The service's API as the page uses it.

export class ServiceError extends Error {
  constructor(message, param = null) {
    super(message);
    this.param = param; // the request's field that is wrong, if one is
  }
}

const IMAGES = "/v1/images/generations";
const JOBS = "/v1/jobs";
const KEY = "msf-api-key"; // of sessionStorage: gone with the tab
const ENDS = new Set(["succeeded", "failed", "cancelled", "expired"]);
const RETRIES = 5;

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

export function setApiKey(key) {
  sessionStorage.setItem(KEY, key.trim());
}

export async function listModels() {
  return (await answer(await reach("/v1/models"))).data;
}

export async function isReady() {
  return fetch("/v2/health/ready").then(({ ok }) => ok, () => false);
}

// null where only operators may see them.
export async function readStats() {
  const response = await fetch("/v1/stats").catch(() => null);
  return response?.ok ? response.json() : null;
}

export async function createJob(request) {
  return answer(await reach(JOBS, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization() },
    body: JSON.stringify(request),
  }));
}

// Also while the page is being left.
export function cancelJob(id) {
  return fetch(`${JOBS}/${id}`, { method: "DELETE", headers: authorization(), keepalive: true }).catch(() => null);
}

// The job's events as they come, each with its `type`; after a lost connection from where they stopped.
export async function* jobEvents(id) {
  let last = null;
  for (let failures = 0; failures <= RETRIES; failures++) {
    const resume = last ? { "Last-Event-ID": last } : {};
    const response = await fetch(`${JOBS}/${id}/events`, { headers: { ...authorization(), ...resume } }).catch(() => null);
    if (response && !response.ok) await answer(response);
    for await (const event of response ? serverSentEvents(response.body) : []) {
      failures = 0;
      last = event.id ?? last;
      yield event.data;
      if (ENDS.has(event.type)) return;
    }
    await new Promise((resolve) => setTimeout(resolve, 200 * 2 ** failures));
  }
  throw unreachable();
}

// Until the stream ends, well or not.
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

export function asCurl(request) {
  const body = JSON.stringify(request).replaceAll("'", `'\\''`);
  const key = apiKey() ? ` \\\n  -H "Authorization: Bearer $MSF_API_KEY"` : ""; // a screen may be shared
  return `curl ${location.origin}${IMAGES}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}

export function asPython({ prompt, n, model, ...ours }) {
  const own = Object.entries({ model, prompt, n }).filter(([, value]) => value !== undefined);
  const named = own.map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join("");
  const key = apiKey() ? `os.environ["MSF_API_KEY"]` : `"none"`;
  return `${apiKey() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1", api_key=${key})
images = client.images.generate(
${named}    extra_body=${JSON.stringify(ours).replaceAll(/([:,])"?/g, (found) => found.replace(/^[:,]/, "$& "))},
)`;
}

function authorization() {
  return apiKey() ? { Authorization: `Bearer ${apiKey()}` } : {};
}

const unreachable = () => new ServiceError("The service cannot be reached. Is it still running?");

async function reach(path, options) {
  return fetch(path, options).catch(() => { throw unreachable(); });
}

async function answer(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const { message, param } = body?.error ?? { message: `The service answered with status ${response.status}.` };
  throw new ServiceError(message, response.status === 401 ? "key" : param);
}
