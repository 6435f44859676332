// The official SDK for Node takes the service for OpenAI: base URL and key are all that changes.
// Its argument is the address of a service whose provider "broken" fails, "throttled" refuses for
// now, "cut" breaks off after the first word and "hanging" never answers.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any", maxRetries: 0 });
const model = "openai/gpt-4o-mini";
const ask = (content) => [{ role: "user", content }];
const tool = {
  type: "function",
  function: {
    name: "add",
    strict: true,
    parameters: {
      type: "object",
      properties: { a: { type: "integer" } },
      required: ["a"],
      additionalProperties: false,
    },
  },
};
const choice = { type: "function", function: { name: "add" } };

const checks = {
  async chat() {
    const { data, response } = await client.chat.completions
      .create({ model, messages: ask("What is 2+2?") })
      .withResponse();
    assert.equal(data.choices[0].message.content, "4");
    assert.equal(data.usage.total_tokens, 4);
    assert.equal(response.headers.get("x-aigateway-provider"), model);
  },

  async stream() {
    const stream = await client.chat.completions.create({
      model: "auto",
      messages: ask("one two"),
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let last;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      last = chunk;
    }
    assert.equal(text, "one two");
    assert.equal(last.usage.completion_tokens, 2);
    const whole = client.chat.completions.stream({ model, messages: ask("three four") });
    assert.equal(await whole.finalContent(), "three four");
  },

  async tools() {
    const asked = { model, tools: [tool], tool_choice: choice };
    const plain = await client.chat.completions.create({ ...asked, messages: ask("plain") });
    const called = plain.choices[0].message.tool_calls[0];
    assert.deepEqual(JSON.parse(called.function.arguments), { a: 1 });
    const runner = client.chat.completions.stream({ ...asked, messages: ask("streamed") });
    const streamed = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0];
    assert.equal(streamed.function.name, "add");
    assert.deepEqual(JSON.parse(streamed.function.arguments), { a: 1 });
  },

  async structuredOutput() {
    const City = z.object({ name: z.string(), people: z.number().int() });
    const reply = await client.chat.completions.parse({
      model,
      messages: ask("A city."),
      response_format: zodResponseFormat(City, "city"),
    });
    assert.deepEqual(reply.choices[0].message.parsed, { name: "text", people: 1 });
  },

  async embeddings() {
    const asked = { model: "vectors", input: ["a", "b"], dimensions: 4 };
    const packed = await client.embeddings.create(asked); // base64 by itself
    const plain = await client.embeddings.create({ ...asked, encoding_format: "float" });
    assert.deepEqual(
      packed.data.map((item) => item.embedding.map((x) => x.toFixed(5))),
      plain.data.map((item) => item.embedding.map((x) => x.toFixed(5))),
    );
  },

  async models() {
    const names = [];
    for await (const one of client.models.list()) names.push(one.id);
    assert.ok(names.includes("auto") && names.includes(model));
    assert.equal((await client.models.retrieve(model)).owned_by, "openai");
  },

  async errors() {
    const failing = [
      [OpenAI.NotFoundError, { model: "nobody", messages: ask("a") }],
      [OpenAI.BadRequestError, { model, messages: [] }],
      [OpenAI.BadRequestError, { model, messages: ask("a"), api_base: "http://127.0.0.1:9" }],
      [OpenAI.RateLimitError, { model: "throttled", messages: ask("a") }],
      [OpenAI.InternalServerError, { model: "broken", messages: ask("a") }],
    ];
    for (const [kind, body] of failing) {
      for (const stream of [false, true]) {
        await assert.rejects(client.chat.completions.create({ ...body, stream }), (error) => {
          assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
          assert.ok(error.requestID);
          return true;
        });
      }
    }
  },

  async brokenStream() {
    const stream = await client.chat.completions.create({
      model: "cut",
      messages: ask("one two three"),
      stream: true,
    });
    const seen = [];
    await assert.rejects(async () => {
      for await (const chunk of stream) seen.push(chunk.choices[0].delta.content);
    }, OpenAI.APIError);
    assert.deepEqual(seen, ["one"]);
  },

  async leaving() {
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 50);
    await assert.rejects(
      client.chat.completions.create(
        { model: "hanging", messages: ask("a") },
        { signal: controller.signal },
      ),
      OpenAI.APIUserAbortError,
    );
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`ok ${name}`);
}
