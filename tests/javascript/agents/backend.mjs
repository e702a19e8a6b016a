// The agents of tests/support/apps/agents.py under a real uvicorn.

import { serve } from "../support.mjs";

export const words = (count) => Array.from({ length: count }, (_, number) => `${number} — ü 🦄\n`).join("");
export const WHOLE = words(40);
export const AT_ONCE = words(3);

export async function startAgents() {
  const server = await serve("tests.support.apps.agents:app");
  const tell = async (method, verb, key, more) => {
    const response = await fetch(`${server.url}/${verb}?${new URLSearchParams({ key, ...more })}`, { method });
    if (!response.ok) throw new Error(await response.text());
    return response.json();
  };
  return {
    ...server,
    write: (key, words) => tell("POST", "write", key, words && { words }),
    fail: (key) => tell("POST", "fail", key),
    outcomes: (key) => tell("GET", "outcomes", key),
  };
}

/** Seeded numbers from 0 to 1. */
export function seeded(seed = Number(process.env.RESUMABLE_TEST_SEED ?? 1)) {
  let state = seed;
  return () => ((state = (state * 48271) % 2147483647) / 2147483647);
}
