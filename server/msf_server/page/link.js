// Share links: the parameters of what is shown, in the page's URL.

const NUMBERS = ["n", "seed", "first_index", "num_steps", "guidance_scale"];
const OTHER = "b_"; // prefix of the second setting of a comparison
const COMPARED = ["model", "num_steps", "guidance_scale"];
const TEXTS = new Set(["model", "negative_prompt"]);

// Return the query of a request; `compared` has the second setting's fields, if there is one.
export function toQuery({ mode, fields, compared }) {
  const query = new URLSearchParams();
  for (const name of ["model", "prompt", ...NUMBERS, "negative_prompt"]) {
    if (fields[name] !== undefined && !(name === "first_index" && fields[name] === 0)) query.set(name, fields[name]);
  }
  if (mode === "compare") for (const name of COMPARED) query.set(OTHER + name, compared[name]);
  if (mode === "vary") query.set("vary", "1");
  return `?${query}`;
}

// Return the request of a query, or null if it names no class.
export function fromQuery(text) {
  const query = new URLSearchParams(text);
  if (!query.get("prompt")) return null;
  const fields = { prompt: query.get("prompt"), ...read(query, "", ["model", ...NUMBERS, "negative_prompt"]) };
  const compared = read(query, OTHER, COMPARED);
  const isCompared = Object.keys(compared).length > 0;
  return { mode: query.has("vary") ? "vary" : isCompared ? "compare" : "generate", fields, compared: isCompared ? compared : null };
}

function read(query, prefix, names) {
  const present = names.filter((name) => query.get(prefix + name));
  const value = (name) => (TEXTS.has(name) ? query.get(prefix + name) : Number(query.get(prefix + name)));
  return Object.fromEntries(present.map((name) => [name, value(name)]).filter(([, each]) => !Number.isNaN(each)));
}
