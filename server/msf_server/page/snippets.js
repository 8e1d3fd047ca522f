// The request of the form as code.

import { apiKey } from "./api.js";
import { byId, copyText, flash } from "./dom.js";

const IMAGES = "/v1/images/generations";

function asCurl(fields) {
  const body = JSON.stringify(fields).replaceAll("'", `'\\''`);
  const key = apiKey() ? ` \\\n  -H "Authorization: Bearer $MSF_API_KEY"` : ""; // the screen may be shared, so the key is not shown
  return `curl ${location.origin}${IMAGES}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}

function asPython({ prompt, n, model, ...extensions }) {
  const standard = Object.entries({ model, prompt, n }).filter(([, value]) => value !== undefined);
  const keywords = standard.map(([name, value]) => `    ${name}=${JSON.stringify(value)},\n`).join("");
  const key = apiKey() ? `os.environ["MSF_API_KEY"]` : `"none"`;
  return `${apiKey() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1", api_key=${key})
images = client.images.generate(
${keywords}    extra_body=${JSON.stringify(extensions).replaceAll(/([:,])"?/g, (match) => match.replace(/^[:,]/, "$& "))},
)`;
}

export function showCode(fields) {
  byId("code").textContent = byId("as-python").checked ? asPython(fields) : asCurl(fields);
}

// `fields` returns those of the form.
export function listenForCode(fields) {
  for (const id of ["as-curl", "as-python"]) byId(id).addEventListener("change", () => showCode(fields()));
  byId("copy").addEventListener("click", async () => {
    const isCopied = await copyText(byId("code").textContent, byId("code"));
    flash(byId("copy"), isCopied ? "Copied" : "Selected");
  });
}
