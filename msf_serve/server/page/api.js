// The service's API as the page uses it.

export class ServiceError extends Error {
  constructor(message, param = null) {
    super(message);
    this.param = param; // the request's field that is wrong, if one is
  }
}

const PATH = "/v1/images/generations";
const KEY = "msf-api-key"; // of sessionStorage: gone with the tab

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

export function setApiKey(key) {
  sessionStorage.setItem(KEY, key.trim());
}

export async function listModels() {
  return (await answer(await reach("/v1/models"))).data;
}

export async function isReady() {
  try {
    return (await fetch("/v2/health/ready")).ok;
  } catch {
    return false;
  }
}

export async function generate(request, signal) {
  return answer(await reach(PATH, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(apiKey() && { Authorization: `Bearer ${apiKey()}` }) },
    body: JSON.stringify(request),
    signal,
  }));
}

export function curlCommand(request) {
  const body = JSON.stringify(request).replaceAll("'", `'\\''`);
  const key = apiKey() ? ` \\\n  -H "Authorization: Bearer $MSF_API_KEY"` : ""; // a screen may be shared
  return `curl ${location.origin}${PATH}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached. Is it still running?");
  }
}

async function answer(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const { message, param } = body?.error ?? { message: `The service answered with status ${response.status}.` };
  throw new ServiceError(message, response.status === 401 ? "key" : param);
}
