// The LangGraph SDK, unmodified, through a proxy that cuts: it comes back to the URL in `Location`.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Client } from "@langchain/langgraph-sdk";

import { startProxy } from "../ai-sdk/backend.mjs";
import { serve } from "../support.mjs";

test("a run comes whole over two cuts, each event once, and runs once", { timeout: 200_000 }, async () => {
  const server = await serve("tests.support.apps.vendors:app");
  const limits = [2000, 3000];
  const proxy = await startProxy(server.port, () => limits.shift() ?? Infinity);
  const client = new Client({ apiUrl: proxy.url, callerOptions: { maxRetries: 0 } });
  const words = [];
  for await (const { event, data } of client.runs.stream("thread-js", "agent", { streamMode: "custom" })) {
    if (event === "custom") words.push(data);
  }
  assert.deepEqual(words, Array.from({ length: 150 }, (_, number) => `Wort ${number} 😀 `));
  assert.equal(proxy.cuts, 2);
  assert.deepEqual(await (await fetch(`${server.url}/runs`)).json(), ["thread-js"]);
  await proxy.stop();
  await server.stop();
});
