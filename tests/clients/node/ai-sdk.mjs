// The AI SDK's `openai` provider at its defaults, before the service at the given address.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const openai = createOpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any" });
const schema = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const weather = tool({
  description: "The weather of a city.",
  inputSchema: jsonSchema(schema),
  execute: async ({ city }) => `sun in ${city}`,
});
const asked = {
  model: openai("auto"),
  system: "Be brief.",
  prompt: "Weather?",
  tools: { weather },
  stopWhen: stepCountIs(3),
  maxRetries: 0,
};
assert.equal((await generateText(asked)).text, "It is sunny.");
let text = "";
for await (const part of streamText(asked).textStream) text += part;
assert.equal(text, "It is sunny.");
console.log("passed");
