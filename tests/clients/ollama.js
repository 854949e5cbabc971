// The official Ollama client.

import { load, run, server } from "./packages.js";

const { Ollama } = await load("ollama");
const as = (key) => new Ollama({ host: server.address, headers: { Authorization: `Bearer ${key}` } });
const client = as(server.key);
const { model } = server;
const messages = [{ role: "user", content: "Write a Python function that adds two numbers." }];
const options = { num_predict: 40, temperature: 0 };
const middle = { model, prompt: "def add(a, b):\n    return ", suffix: "\n\n\nprint(add(1, 2))\n", options };

async function joined(stream, text) {
  let all = "";
  let last;
  for await (const part of stream) {
    all += text(part);
    last = part;
  }
  return { text: all, last };
}

await run({
  version: async () => client.version(),
  models: async () => client.list(),
  running: async () => client.ps(),
  show: async () => client.show({ model }),
  infill: async () => client.generate(middle),
  "streamed infill": async () => joined(await client.generate({ ...middle, stream: true }), (part) => part.response),
  generate: async () => client.generate({ model, prompt: "Write a Python function that adds two numbers.", options }),
  chat: async () => client.chat({ model, messages, options }),
  "streamed chat": async () =>
    joined(await client.chat({ model, messages, options, stream: true }), (part) => part.message.content),
  cancelled: async () => {
    const stream = await client.generate({ model, prompt: "abc", options: { num_predict: 480 }, stream: true });
    try {
      for await (const part of stream) {
        if (part.response) stream.abort();
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
    return (await client.generate({ model, prompt: "abc", options: { num_predict: 1 } })).response;
  },
  "wrong key": async () => as("wrong").list(),
  "unknown model": async () => client.generate({ model: "unknown", prompt: "a" }),
  pull: async () => client.pull({ model: "qwen2.5-coder" }),
  full: async () => client.generate({ model, prompt: "a", options: { num_predict: 1 } }),
});
