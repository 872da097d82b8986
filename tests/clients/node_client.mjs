// The official OpenAI client for Node against a running server: chat, streams, tools, errors, an abort.
//
//     node node_client.mjs --base-url http://127.0.0.1:8000/v1
//
// Needs the package `openai`, found from the working directory, and Node 20.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { parseArgs } from "node:util";

const OpenAI = createRequire(path.join(process.cwd(), "package.json"))("openai").default;

const model = "smollm2:135m";
const messages = [{ role: "user", content: "Name one colour." }];
const ask = { model, messages, max_tokens: 16, temperature: 0 };
const tool = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 20 }, days: { type: "integer", minimum: 1, maximum: 9 } },
      required: ["city", "days"],
      additionalProperties: false,
    },
  },
};

async function chat(client) {
  const answer = await client.chat.completions.create(ask);
  const [choice] = answer.choices;
  assert.equal(choice.message.role, "assistant");
  assert.ok(choice.message.content && ["stop", "length"].includes(choice.finish_reason), "a text and an end");
  assert.ok(answer._request_id, "a request id");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  return choice.message.content;
}

async function streams(client, whole) {
  let text = "";
  const usages = [];
  const options = { ...ask, stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create(options)) {
    text += chunk.choices[0]?.delta.content ?? "";
    if (chunk.usage) usages.push(chunk.usage);
  }
  assert.equal(text, whole, "a stream says what a whole answer says");
  assert.equal(usages.length, 1, "one chunk counts tokens");
  const helper = client.chat.completions.stream(ask);
  assert.equal((await helper.finalChatCompletion()).choices[0].message.content, whole, "the streaming helper");
  const completion = { model, prompt: "Once upon a time", max_tokens: 8, temperature: 0 };
  const once = (await client.completions.create(completion)).choices[0].text;
  let joined = "";
  for await (const chunk of await client.completions.create({ ...completion, stream: true })) {
    joined += chunk.choices[0]?.text ?? "";
  }
  assert.equal(joined, once, "a streamed completion");
}

async function tools(client) {
  const options = { ...ask, max_tokens: 100, tools: [tool], tool_choice: "required", parallel_tool_calls: false };
  const answer = await client.chat.completions.create(options);
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  const [call] = answer.choices[0].message.tool_calls;
  const { city, days } = JSON.parse(call.function.arguments);
  assert.ok(call.id && call.function.name === "get_weather" && typeof city === "string", "the call");
  assert.ok(Number.isInteger(days) && days >= 1 && days <= 9, "a value within its limits");
  const streamed = await client.chat.completions.stream(options).finalChatCompletion();
  assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);

  // The helper calls the function and keeps what it returned. One turn: the tool is forced in each.
  let called;
  const runner = client.chat.completions.runTools({
    ...ask,
    max_tokens: 100,
    tool_choice: { type: "function", function: { name: "get_weather" } },
    tools: [{
      type: "function",
      function: { ...tool.function, parse: JSON.parse, function: (given) => { called = given; return "rain"; } },
    }],
  }, { maxChatCompletions: 1 });
  await runner.done();
  assert.ok(Number.isInteger(called?.days), "runTools calls the function");
  assert.equal(runner.messages.at(-1).role, "tool", "and keeps its result");
}

async function schema(client) {
  const response_format = {
    type: "json_schema",
    json_schema: { name: "weather", strict: true, schema: tool.function.parameters },
  };
  const answer = await client.chat.completions.parse({ ...ask, max_tokens: 100, response_format });
  assert.deepEqual(Object.keys(answer.choices[0].message.parsed), ["city", "days"]);
}

async function refusals(client) {
  const refused = (error, given) => assert.rejects(client.chat.completions.create({ ...ask, ...given }), error);
  await refused((e) => e instanceof OpenAI.BadRequestError && e.param === "temperature", { temperature: -1 });
  await refused((e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found", { model: "other" });
}

async function aborts(client, whole) {
  const endless = { ...ask, max_tokens: 4000, ignore_eos: true };
  const stream = await client.chat.completions.create({ ...endless, stream: true });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted, "leaving the loop aborts the stream");
  const controller = new AbortController();
  const pending = client.chat.completions.create(endless, { signal: controller.signal });
  setTimeout(() => controller.abort(), 100);
  await assert.rejects(pending, OpenAI.APIUserAbortError);
  await assert.rejects(client.chat.completions.create(endless, { timeout: 200 }), OpenAI.APIConnectionTimeoutError);
  assert.equal(await chat(client), whole, "the answer after the aborted ones");
}

const { values } = parseArgs({ options: { "base-url": { type: "string" } } });
assert.ok(values["base-url"], "--base-url is missing");
const client = new OpenAI({ baseURL: values["base-url"], apiKey: "none", maxRetries: 0, timeout: 120_000 });
const listed = [];
for await (const { id } of client.models.list()) listed.push(id);
assert.deepEqual(listed, [model]);
assert.equal((await client.models.retrieve(model)).object, "model");
const whole = await chat(client);
const crowd = await Promise.all(Array.from({ length: 16 }, () => chat(client)));
assert.deepEqual(new Set(crowd), new Set([whole]), "the same greedy answer in a crowd");
await streams(client, whole);
await tools(client);
await schema(client);
await refusals(client);
await aborts(client, whole);
console.log("openai for Node: all calls answered as expected");
