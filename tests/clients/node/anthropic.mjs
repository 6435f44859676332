// Anthropic's SDK for Node takes the service at the given address for Anthropic.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "one two" }];
const input_schema = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
};
const asked = { model: "auto", max_tokens: 99, messages };
const tools = [{ name: "weather", description: "The weather of a city.", input_schema }];

const plain = await client.messages.create(asked);
assert.equal(plain.content[0].text, "It is sunny.");
assert.equal(plain.stop_reason, "end_turn");

const turn = await client.messages.stream({ ...asked, tools }).finalMessage();
assert.equal(turn.stop_reason, "tool_use");
const call = turn.content.at(-1);
assert.deepEqual(call.input, { city: "Oslo" });
const result = { type: "tool_result", tool_use_id: call.id, content: "sun" };
const history = [...messages, { role: "assistant", content: turn.content }];
const answer = await client.messages.create({
  ...asked,
  tools,
  messages: [...history, { role: "user", content: [result] }],
});
assert.equal(answer.content.at(-1).text, "It is sunny.");

const thinking = { type: "enabled", budget_tokens: 1024 };
const thought = client.messages.stream({ ...asked, max_tokens: 4000, thinking });
assert.equal(await thought.finalText(), "It is sunny.");
assert.ok((await client.messages.countTokens({ model: "auto", messages })).input_tokens > 0);
await assert.rejects(client.messages.create({ ...asked, max_tokens: 0 }), Anthropic.BadRequestError);
await assert.rejects(client.messages.create({ ...asked, model: "none" }), Anthropic.NotFoundError);
console.log("passed");
