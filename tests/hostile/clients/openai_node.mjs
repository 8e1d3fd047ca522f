// What OpenAI's Node client sends, the newest and the first of its interface: URL as the only argument.
import assert from "node:assert/strict";

import Newest from "openai";
import First from "openai-first";

for (const Client of [Newest, First]) {
  const client = new Client({ baseURL: `${process.argv[2]}/v1`, apiKey: "any", maxRetries: 0 });
  const generate = (fields) => client.images.generate({ model: "fashion-mnist", prompt: "sneaker", ...fields });
  for (const size of ["1024x1024", "512x512", "256x256"]) {
    const answer = await generate({ n: 2, size });
    assert.deepEqual([answer.data.length, answer.size], [2, "32x32"]);
    assert.equal((await fetch(answer.data[0].url)).status, 200);
  }
  assert.equal((await generate({ n: null, size: null, response_format: null, user: undefined })).data.length, 1);
  assert.equal((await client.models.list()).data.length, 1);
  await assert.rejects(generate({ size: "banana" }), /WIDTHxHEIGHT/);
}
const client = new Newest({ baseURL: `${process.argv[2]}/v1`, apiKey: "any", maxRetries: 0 });
const types = [];
const request = { prompt: "sneaker", stream: true, partial_images: 1, size: "auto", quality: "low" };
for await (const event of await client.images.generate(request)) types.push(event.type);
assert.deepEqual(types, ["image_generation.partial_image", "image_generation.completed"]);
