// WorkflowChatTransport of @ai-sdk/workflow, which resumes in mid-stream: through a proxy that cuts.

import assert from "node:assert/strict";
import { after, before, mock, test } from "node:test";

import { Chat } from "@ai-sdk/react";

import { fromDocs } from "../support.mjs";
import { startBackend, startProxy } from "./backend.mjs";

const TEXT = Array.from({ length: 60 }, (_, number) => `${number} — <b>ü</b> 🦄\n`).join("");
const SEED = Number(process.env.RESUMABLE_TEST_SEED ?? 1);
const timeout = 200_000;

let backend;
before(async () => (backend = await startBackend()), { timeout });
after(() => backend.stop());
mock.method(console, "error", () => {}); // where the transport reports every cut

let count = 0;
const unique = () => `run ${process.pid}/${++count}`;

/** A page with the transport of the documentation. */
async function open(id, url) {
  const page = { requests: [] };
  const { transport } = await fromDocs("how-to/ai-sdk.md", "transport.mjs");
  transport.api = `${url}/api/chat`;
  transport.fetch = async (...request) => {
    const response = await fetch(...request);
    page.requests.push(`${request[1].method ?? "GET"} ${response.status}`);
    return response;
  };
  page.chat = new Chat({ id, transport });
  return page;
}

const texts = (message) => message.parts.filter((part) => part.type === "text").map((part) => part.text);

const hasText = (chat) => texts(chat.lastMessage ?? { parts: [] }).join("").includes("\n");

/** Wait until the chat shows what is asked for. */
async function until(chat, condition) {
  await new Promise((resolve) => {
    const look = () => condition(chat) && resolve();
    chat["~registerMessagesCallback"](look);
    look();
  });
}

/** Seeded numbers from 0 to 1. */
function seeded(seed) {
  let state = seed;
  return () => ((state = (state * 48271) % 2147483647) / 2147483647);
}

test("an answer comes whole over many cuts, each part once, of one run", { timeout }, async () => {
  const random = seeded(SEED);
  // Room for the head of a response, and for some parts.
  const proxy = await startProxy(backend.port, () => 700 + 900 * random());
  const id = unique();
  const { chat, requests } = await open(id, proxy.url);
  const sent = chat.sendMessage({ text: "hello" });
  await until(chat, hasText);
  for (let word = 0; word < 54; word++) await backend.write(id, 1);
  await sent;
  await proxy.stop();
  assert.equal(chat.status, "ready");
  assert.deepEqual(texts(chat.lastMessage), [TEXT]);
  assert.deepEqual(
    chat.lastMessage.parts.map((part) => part.type),
    ["step-start", "reasoning", "tool-count", "data-mood", "text"],
  );
  assert.ok(proxy.cuts > 3, `${proxy.cuts} cuts`);
  assert.equal(requests[0], "POST 200");
  assert.ok(requests.length > 3, requests.join());
  assert.deepEqual(await backend.outcomes(id), ["whole"]);
});

test("after a reload the answer is built from its start, finished in the meantime or not", { timeout }, async () => {
  const id = unique();
  const first = await open(id, backend.url);
  void first.chat.sendMessage({ text: "hello" });
  await until(first.chat, hasText);
  await first.chat.stop(); // what leaving the page does
  const second = await open(id, backend.url);
  const resumed = second.chat.resumeStream();
  await backend.write(id);
  await resumed;
  assert.deepEqual(texts(second.chat.lastMessage), [TEXT]);
  const third = await open(id, backend.url);
  await third.chat.resumeStream();
  assert.deepEqual(texts(third.chat.lastMessage), [TEXT]);
  assert.deepEqual(await backend.outcomes(id), ["whole"]);
});

for (const [name, end] of [
  ["an answer that fails", (id) => backend.fail(id)],
  ["an answer that is stopped", (id) => fetch(`${backend.url}/api/chat/${encodeURIComponent(id)}/stop`, { method: "POST" })],
]) {
  test(`${name} ends the transport's reading, too`, { timeout }, async () => {
    const id = unique();
    const { chat, requests } = await open(id, backend.url);
    const sent = chat.sendMessage({ text: "hello" });
    await until(chat, hasText);
    await end(id);
    await sent;
    assert.equal(chat.status, "error");
    assert.ok(requests.length <= 2, requests.join());
    assert.deepEqual(await backend.outcomes(id), ["abandoned"]);
  });
}
