// The official OpenAI SDK.

import { load, run, server } from "./packages.js";

const { default: OpenAI } = await load("openai");
const settings = { baseURL: `${server.address}/v1`, maxRetries: 0 };
const client = new OpenAI({ ...settings, apiKey: server.key });
const { model } = server;
const messages = [{ role: "user", content: "Write a Python function that adds two numbers." }];
const middle = { model, prompt: "def add(a, b):\n    return ", suffix: "\n\n\nprint(add(1, 2))\n", max_tokens: 16, temperature: 0 };

async function joined(stream, text) {
  let all = "";
  for await (const chunk of stream) all += chunk.choices.length ? text(chunk.choices[0]) ?? "" : "";
  return all;
}

await run({
  models: async () => (await client.models.list()).data.map((each) => each.id),
  completion: async () => client.completions.create({ model, prompt: "def add(a, b):\n    return", max_tokens: 8, temperature: 0 }),
  infill: async () => client.completions.create(middle),
  "streamed infill": async () => joined(await client.completions.create({ ...middle, stream: true }), (choice) => choice.text),
  chat: async () => client.chat.completions.create({ model, messages, max_tokens: 40, temperature: 0 }),
  "streamed chat": async () => {
    const stream = await client.chat.completions.create({
      model, messages, max_tokens: 40, temperature: 0, stream: true, stream_options: { include_usage: true },
    });
    return joined(stream, (choice) => choice.delta.content);
  },
  // The SDK's own collecting of a stream.
  "collected chat": async () =>
    client.chat.completions.stream({ model, messages, max_tokens: 40, temperature: 0 }).finalChatCompletion(),
  cancelled: async () => {
    const stream = await client.completions.create({ model, prompt: "abc", max_tokens: 480, stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0].text) break; // leaves the loop, and so aborts the request
    }
    return (await client.completions.create({ model, prompt: "abc", max_tokens: 1 })).choices[0].text;
  },
  "wrong key": async () => new OpenAI({ ...settings, apiKey: "wrong" }).models.list(),
  "unknown model": async () => client.completions.create({ model: "gpt-9", prompt: "a" }),
  "too long": async () => client.completions.create({ model, prompt: "a b ".repeat(50_000), max_tokens: 1 }),
  full: async () => client.completions.create({ model, prompt: "a", max_tokens: 1 }),
});
