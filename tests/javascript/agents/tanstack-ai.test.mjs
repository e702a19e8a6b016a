// TanStack AI's adapter and chat client, unmodified, through a proxy that cuts.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client";

import { startProxy } from "../ai-sdk/backend.mjs";
import { fromDocs } from "../support.mjs";
import { AT_ONCE, seeded, startAgents, WHOLE } from "./backend.mjs";

const timeout = 200_000;

let backend;
before(async () => (backend = await startAgents()), { timeout });
after(() => backend.stop());

let count = 0;
const unique = () => `thread-${process.pid}-${++count}`;

const connect = (url) => fetchServerSentEvents(`${url}/tanstack`, { reconnect: { maxAttempts: 100, delayMs: 1 } });
const question = [{ id: "q", role: "user", parts: [{ type: "text", content: "hi" }] }];

/** What of a run's text has come: each word once, in order. */
async function read(chunks, onText = () => {}) {
  const heard = { text: "", types: [] };
  for await (const chunk of chunks) {
    heard.types.push(chunk.type);
    if (chunk.delta) onText((heard.text += chunk.delta));
  }
  return heard;
}

function assertWhole({ text, types }) {
  assert.equal(text, WHOLE);
  assert.deepEqual(
    types.filter((type) => type !== "TEXT_MESSAGE_CONTENT"),
    ["RUN_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_END", "RUN_FINISHED"],
  );
}

test("a run comes whole over many cuts, each event once, and runs once", { timeout }, async () => {
  const random = seeded();
  const proxy = await startProxy(backend.port, () => 800 + 800 * random());
  const threadId = unique();
  const run = connect(proxy.url).connect(question, undefined, undefined, { threadId, runId: `run-${threadId}` });
  const writing = {};
  const heard = await read(run, (text) => {
    if (text === AT_ONCE) writing.done = (async () => {
      for (let word = 0; word < 37; word++) await backend.write(threadId, 1);
    })();
  });
  await writing.done;
  assertWhole(heard);
  assert.ok(proxy.cuts > 3, `${proxy.cuts} cuts`);
  assert.deepEqual(await backend.outcomes(threadId), ["whole"]);
  await proxy.stop();
});

test("a cut between two events repeats none", { timeout }, async () => {
  const threadId = unique();
  const proxy = await startProxy(backend.port);
  const run = connect(proxy.url).connect(question, undefined, undefined, { threadId, runId: `run-${threadId}` });
  let writing;
  const heard = await read(run, (text) => {
    // Nothing is on its way: all that was written has been read.
    if (text === AT_ONCE || text.split("\n").length === 7) proxy.cut();
    if (text === AT_ONCE) writing = backend.write(threadId, 3);
    if (text.split("\n").length === 7) writing = backend.write(threadId);
  });
  await writing;
  assertWhole(heard);
  assert.deepEqual(await backend.outcomes(threadId), ["whole"]);
  await proxy.stop();
});

test("a reloaded page joins the run from its start, live and once it has ended", { timeout }, async () => {
  const threadId = unique();
  const runId = `run-${threadId}`;
  const leaving = new AbortController();
  const adapter = connect(backend.url);
  await read(adapter.connect(question, undefined, leaving.signal, { threadId, runId }), (text) => {
    if (text === AT_ONCE) leaving.abort();
  });
  let writing;
  const joined = await read(adapter.joinRun(runId), (text) => {
    if (text === AT_ONCE) writing = backend.write(threadId);
  });
  await writing;
  assertWhole(joined);
  assertWhole(await read(adapter.joinRun(runId)));
  assert.deepEqual(await backend.outcomes(threadId), ["whole"]);
});

test("a run that fails ends with RUN_ERROR, and is not asked for again", { timeout }, async () => {
  const threadId = unique();
  const run = connect(backend.url).connect(question, undefined, undefined, { threadId, runId: `run-${threadId}` });
  const { types } = await read(run, (text) => {
    if (text === AT_ONCE) backend.fail(threadId);
  });
  assert.equal(types.at(-1), "RUN_ERROR");
});

test("the page of the documentation asks, reloads and stops", { timeout }, async () => {
  const change = (code) => code.replace("'/chat'", `'${backend.url}/tanstack'`).replace("`/v1/", `\`${backend.url}/runs/`);
  const { openThread } = await fromDocs("how-to/tanstack-ai.md", "chat.mjs", change);
  const items = new Map();
  const store = {
    getItem: (id) => structuredClone(items.get(id)),
    setItem: (id, value) => void items.set(id, structuredClone(value)),
    removeItem: (id) => void items.delete(id),
  };
  const threadId = unique();
  const shown = (messages) => {
    const last = messages.at(-1);
    return last?.role === "assistant" ? last.parts.map(({ content }) => content).join("") : "";
  };
  const seen = (text) => {
    const wait = {};
    wait.promise = new Promise((resolve) => (wait.look = (messages) => shown(messages) === text && resolve()));
    return wait;
  };
  const first = seen(AT_ONCE);
  const page = openThread(threadId, first.look, store);
  void page.ask("hello");
  await first.promise;
  page.leave();
  const whole = seen(WHOLE);
  const reloaded = openThread(threadId, whole.look, store);
  await backend.write(threadId);
  await whole.promise;
  assert.deepEqual(await backend.outcomes(threadId), ["whole"]);
  const again = seen(AT_ONCE);
  const third = openThread(unique(), again.look, store);
  void third.ask("hello");
  await again.promise;
  await third.stop();
  assert.deepEqual(await backend.outcomes(third.threadId), ["abandoned"]);
  reloaded.leave();
});
