// Loads a client from the folder that `make clients` installs (RRTF_CLIENTS), runs what the command line asks
// for, one after the other, and prints one JSON object: by name {"value": ...} or {"error": {...}}.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.RRTF_CLIENTS}/package.json`);

export const load = (name) => import(pathToFileURL(require.resolve(name)).href);

export const server = {
  address: process.env.RRTF_ADDRESS,
  key: process.env.RRTF_KEY,
  model: process.env.RRTF_MODEL,
};

// What a user of a client sees of a failure.
const failure = (error) => ({
  name: error.constructor.name,
  message: String(error.message),
  status: error.status ?? error.status_code ?? null,
  code: error.code ?? null,
});

export async function run(scenarios) {
  const results = {};
  for (const name of process.argv.slice(2)) {
    try {
      results[name] = { value: await scenarios[name]() };
    } catch (error) {
      results[name] = { error: failure(error) };
    }
  }
  // On a line of its own: some clients print, too.
  process.stdout.write(`\n${JSON.stringify(results)}\n`, () => process.exit(0));
}
