// A TypeScript client generated from the service's OpenAPI document, compiled strictly: URL as the only argument.
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";

const run = (program, ...args) => execFileSync(`node_modules/.bin/${program}`, args, { stdio: ["ignore", 2, 2] });
run("openapi-typescript", `${process.argv[2]}/openapi.json`, "--output", "schema.ts");
writeFileSync(
  "client.ts",
  `import createClient from "openapi-fetch";
import type { components, operations, paths, webhooks } from "./schema.js";

type Event = components["schemas"]["ImageStreamEvent"];
type Message = webhooks["job-ended"]["post"]["requestBody"]["content"]["application/json"];
export const isLast = (event: Event) => "type" in event && event.type === "image_generation.completed";
export const succeeded = (message: Message) => message.type === "job.succeeded" && message.data.status === "succeeded";
export type Query = operations["listJobs"]["parameters"]["query"];

const client = createClient<paths>({ baseUrl: process.argv[2] });
const check = (holds: boolean, what: unknown) => { if (!holds) throw new Error(JSON.stringify(what)); };

const models = await client.GET("/v1/models");
check(models.data!.data[0].labels.includes("sneaker"), models);
const images = await client.POST("/v1/images/generations", { body: { prompt: "sneaker", n: 2, seed: 7, num_steps: 4 } });
const made = images.data!;
check("created" in made && made.data.length === 2 && made.seed === 7, images);
const refused = await client.POST("/v1/images/generations", { body: { prompt: "sneaker", num_steps: 1e6 } });
check(refused.error?.error.param === "num_steps", refused);
const created = await client.POST("/v1/jobs", { body: { prompt: 7, num_steps: 4 } });
const job_id = created.data!.id;
let job = created.data;
while (job?.status === "queued" || job?.status === "running")
  job = (await client.GET("/v1/jobs/{job_id}", { params: { path: { job_id } } })).data;
check(job?.status === "succeeded", job);
const label = { name: "label" as const, shape: [1], datatype: "BYTES" as const, data: ["Bag"] };
const model = models.data!.data[0].name;
const inferred = await client.POST("/v2/models/{model}/infer", { params: { path: { model } }, body: { inputs: [label] } });
check(typeof inferred.data === "object" && inferred.data.outputs[0].shape[0] === 1, inferred.response.status);
`,
);
const options = ["--strict", "--target", "es2022", "--module", "nodenext", "--types", "node", "--skipLibCheck"];
writeFileSync("package.json", JSON.stringify({ private: true, type: "module" }));
run("tsc", ...options, "client.ts");
execFileSync("node", ["client.js", process.argv[2]], { stdio: ["ignore", 2, 2] });
