// What Vercel's AI SDK sends through its two providers: URL as the only argument.
import assert from "node:assert/strict";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const server = { baseURL: `${process.argv[2]}/v1`, apiKey: "any" };
const openai = createOpenAI(server).image("fashion-mnist");
const compatible = createOpenAICompatible({ name: "msf", ...server }).imageModel("fashion-mnist");
for (const model of [openai, compatible]) {
  const one = await generateImage({ model, prompt: "sneaker" });
  assert.equal(one.image.mediaType, "image/png");
  const several = await generateImage({ model, prompt: "Ankle-boot", n: 3, size: "1024x1024", seed: 7 });
  assert.equal(several.images.length, 3);
}
const options = { quality: "low", style: "vivid", background: "transparent", outputFormat: "webp", user: "ada" };
const webp = await generateImage({ model: openai, prompt: "bag", providerOptions: { openai: options } });
assert.equal(webp.image.mediaType, "image/webp");
