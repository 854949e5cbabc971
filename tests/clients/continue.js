// What Continue asks servers with: its adapters, by the provider that a user's configuration names.

import { load, run, server } from "./packages.js";

const { constructLlmApi } = await load("@continuedev/openai-adapters");
const { model } = server;
const adapter = (provider, key = server.key) => constructLlmApi({ provider, apiKey: key, apiBase: `${server.address}/v1/` });
const messages = [{ role: "user", content: "Write a Python function that adds two numbers." }];
const middle = { model, prompt: "def add(a, b):\n    return ", suffix: "\n\n\nprint(add(1, 2))\n", max_tokens: 16, temperature: 0 };
const template = "<|fim_prefix|>def add(a, b):\n    return <|fim_suffix|>\n\n\nprint(add(1, 2))\n<|fim_middle|>";
const stops = [
  "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
  "<|file_sep|>", "<|im_start|>", "<|im_end|>", "/src/", "#- coding: utf-8", "```",
];

async function joined(stream, text) {
  let all = "";
  let usage = null;
  for await (const chunk of stream) {
    all += chunk.choices.length ? text(chunk.choices[0]) ?? "" : "";
    usage = chunk.usage ?? usage;
  }
  return { text: all, usage };
}

const signal = () => new AbortController().signal;
const content = (choice) => choice.delta.content;
const completed = (provider) =>
  joined(
    adapter(provider).completionStream({ model, prompt: template, max_tokens: 16, temperature: 0.01, stop: stops, stream: true }, signal()),
    (choice) => choice.text,
  );
const filled = (provider) => joined(adapter(provider).fimStream(middle, signal()), content);
const chatted = (provider) =>
  joined(adapter(provider).chatCompletionStream({ model, messages, max_tokens: 40, temperature: 0, stream: true }, signal()), content);

await run({
  models: async () => adapter("openai").list(),
  "openai completion": () => completed("openai"),
  "vllm completion": () => completed("vllm"),
  "lmstudio completion": () => completed("lmstudio"),
  "mistral infill": () => filled("mistral"),
  "openai chat": () => chatted("openai"),
  "mistral chat": () => chatted("mistral"),
  "ollama chat": () => chatted("ollama"),
  "llama.cpp chat": () => chatted("llama.cpp"),
  "whole chat": () => adapter("openai").chatCompletionNonStream({ model, messages, max_tokens: 40, temperature: 0 }, signal()),
  cancelled: async () => {
    const abort = new AbortController();
    const stream = adapter("mistral").fimStream({ ...middle, max_tokens: 480, temperature: 1 }, abort.signal);
    for await (const chunk of stream) {
      if (content(chunk.choices[0])) abort.abort();
    }
    return (await filled("mistral")).text;
  },
  "wrong key": () => joined(adapter("mistral", "wrong").fimStream(middle, signal()), content),
  "unknown model": () => joined(adapter("mistral").fimStream({ ...middle, model: "unknown" }, signal()), content),
  full: () => filled("mistral"),
});
