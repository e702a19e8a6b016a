// AbstractChat of the AI SDK, as `useChat` drives it, on a FastAPI backend: reloads, cuts, stop, failure.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Chat } from "@ai-sdk/react";
import { DefaultChatTransport, readUIMessageStream } from "ai";

import { startBackend, startProxy } from "./backend.mjs";

const words = (count) => Array.from({ length: count }, (_, number) => `${number} — <b>ü</b> 🦄\n`).join("");
const AT_ONCE = words(6);
const ALL_BUT_ONE = words(59);
const TEXT = words(60);
const timeout = 200_000;

let backend;
before(async () => (backend = await startBackend()), { timeout });
after(() => backend.stop());

let count = 0;
const unique = () => `chat ${process.pid}/${++count}`; // a space and a slash, as ids may have

/** A page: a chat, what it was told at its end, and the answers to its requests. */
function open(id, { messages = [], url = backend.url } = {}) {
  const page = { finishes: [], requests: [], wire: [] };
  const transport = new DefaultChatTransport({
    api: `${url}/api/chat`,
    fetch: async (...request) => {
      const response = await fetch(...request);
      page.requests.push(`${request[1].method} ${response.status}`);
      page.epoch = response.headers.get("x-stream-epoch") ?? page.epoch;
      if (!response.body) return response;
      const [mine, theirs] = response.body.tee();
      page.wire.push(new Response(mine).text().catch(() => ""));
      return new Response(theirs, response);
    },
  });
  page.chat = new Chat({ id, messages, transport, onFinish: (finish) => page.finishes.push(finish) });
  return page;
}

const texts = (message) => message.parts.filter((part) => part.type === "text").map((part) => part.text);

/** Wait until the chat shows what is asked for. */
async function until(chat, condition) {
  await new Promise((resolve) => {
    const look = () => condition(chat) && resolve();
    chat["~registerMessagesCallback"](look);
    chat["~registerStatusCallback"](look);
    look();
  });
}
const partial = (text) => (chat) => chat.lastMessage?.role === "assistant" && texts(chat.lastMessage).join("") === text;

const stop = (id, body) =>
  fetch(`${backend.url}/api/chat/${encodeURIComponent(id)}/stop`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });

function assertWhole(message, number = 1) {
  assert.equal(message.id, `answer-${number}`);
  assert.deepEqual(message.metadata, { number });
  assert.deepEqual(
    message.parts.map((part) => part.type),
    ["step-start", "reasoning", "tool-count", "data-mood", "text"],
  );
  assert.deepEqual(texts(message), [TEXT]);
  assert.deepEqual(message.parts[2].output, { counted: 60 });
}

test("an answer arrives whole, the id lines notwithstanding", { timeout }, async () => {
  const id = unique();
  const { chat, finishes, wire } = open(id);
  const sent = chat.sendMessage({ text: "hello" });
  await until(chat, partial(AT_ONCE));
  await backend.write(id);
  await sent;
  assert.equal(chat.status, "ready");
  assertWhole(chat.lastMessage);
  assert.equal(finishes[0].finishReason, "stop");
  const bytes = await wire[0];
  assert.match(bytes, /^id: [a-z2-7]{16}-\d+$/m);
  assert.match(bytes, /data: \[DONE\]\n/);
});

test("a reloaded page gets the live answer from its start, and the server answers once", { timeout }, async () => {
  const id = unique();
  const first = open(id);
  void first.chat.sendMessage({ text: "hello" });
  await until(first.chat, partial(AT_ONCE));
  await first.chat.stop(); // what leaving the page does: a disconnect
  const second = open(id, { messages: first.chat.messages.slice(0, 1) });
  const resumed = second.chat.resumeStream();
  await until(second.chat, partial(AT_ONCE));
  assert.equal(second.chat.status, "streaming");
  await backend.write(id);
  await resumed;
  assertWhole(second.chat.lastMessage);
  assert.equal(second.chat.messages.length, 2);
  assert.deepEqual(await backend.outcomes(id), ["whole"]);
});

test("a finished answer is not replayed: 204, and the chat is as it was", { timeout }, async () => {
  const id = unique();
  const { chat, requests, finishes } = open(id);
  const sent = chat.sendMessage({ text: "hello" });
  await until(chat, partial(AT_ONCE));
  await backend.write(id);
  await sent;
  await chat.resumeStream();
  assert.equal(chat.status, "ready");
  assert.equal(chat.messages.length, 2);
  assertWhole(chat.lastMessage);
  assert.deepEqual(requests, ["POST 200", "GET 204"]);
  assert.equal(finishes.length, 1);
});

test("a chat that never was has nothing to resume", { timeout }, async () => {
  const { chat, requests } = open(unique());
  await chat.resumeStream();
  assert.deepEqual([chat.status, chat.messages, requests], ["ready", [], ["GET 204"]]);
});

test("a chat resumes after each of 200 cuts, at any byte, and every part is there once", { timeout }, async () => {
  const id = unique();
  // A linear congruential generator: the same cuts in every run.
  let seed = 7;
  const random = (from, to) => from + ((seed = (seed * 1103515245 + 12345) % 2 ** 31) % (to - from));
  const most = () => (proxy.cuts < 100 ? 1200 : 6000);
  const proxy = await startProxy(backend.port, () => (proxy.cuts < 200 ? random(1, most()) : Infinity));
  try {
    const { chat, finishes } = open(id, { url: proxy.url });
    let running = chat.sendMessage({ text: "hello" });
    while (true) {
      await running;
      if (chat.status === "ready") break;
      assert.equal(chat.status, "error");
      assert.ok(chat.error instanceof TypeError, chat.error);
      if (proxy.cuts === 100) await backend.write(id, 53); // there is more to cut now
      running = chat.resumeStream();
      if (proxy.cuts === 200) await until(chat, partial(ALL_BUT_ONE)).then(() => backend.write(id));
    }
    assert.equal(proxy.cuts, 200);
    assert.equal(chat.messages.length, 2);
    assertWhole(chat.lastMessage);
    assert.equal(finishes.at(-1).isError, false);
    assert.deepEqual(await backend.outcomes(id), ["whole"]);
  } finally {
    await proxy.stop();
  }
});

test("stop ends the generation, and the message is marked as aborted", { timeout }, async () => {
  const id = unique();
  const page = open(id);
  const sent = page.chat.sendMessage({ text: "hello" });
  await until(page.chat, partial(AT_ONCE));
  const other = open(id);
  const followed = other.chat.resumeStream();
  await until(other.chat, partial(AT_ONCE));
  const [response] = await Promise.all([
    stop(id, { assistantMessage: page.chat.lastMessage, activeStreamId: page.epoch }),
    page.chat.stop(),
  ]);
  assert.deepEqual([response.status, await response.json()], [200, { success: true }]);
  await sent;
  assert.equal(page.finishes[0].isAbort, true);
  assert.equal(page.chat.status, "ready");
  assert.deepEqual(texts(page.chat.lastMessage), [AT_ONCE]);
  assert.deepEqual(await backend.outcomes(id), ["abandoned"]);
  // Another page is told by the protocol's own part, and keeps what it has.
  await followed;
  assert.equal(other.chat.status, "ready");
  assert.equal(other.chat.error, undefined);
  assert.deepEqual(texts(other.chat.lastMessage), [AT_ONCE]);
  assert.match(await other.wire[0], /data: {"type":"abort"}\nid: .*\n\ndata: \[DONE\]\nid: .*\n\n$/);
  // And nothing is left to resume.
  const reloaded = open(id, { messages: page.chat.messages });
  await reloaded.chat.resumeStream();
  assert.deepEqual(reloaded.requests, ["GET 204"]);
});

test("leaving is not stopping: the answer goes on", { timeout }, async () => {
  const id = unique();
  const { chat } = open(id);
  void chat.sendMessage({ text: "hello" });
  await until(chat, partial(AT_ONCE));
  await chat.stop();
  assert.deepEqual(await backend.journal(id), ["writing"]);
  await stop(id);
});

test("a late stop does not end the next answer", { timeout }, async () => {
  const id = unique();
  const page = open(id);
  let sent = page.chat.sendMessage({ text: "one" });
  await until(page.chat, partial(AT_ONCE));
  const late = page.epoch;
  await backend.write(id);
  await sent;
  sent = page.chat.sendMessage({ text: "two" });
  await until(page.chat, partial(AT_ONCE));
  assert.equal((await stop(id, { activeStreamId: late })).status, 200);
  await backend.write(id);
  await sent;
  assertWhole(page.chat.lastMessage, 2);
  assert.deepEqual(await backend.outcomes(id), ["whole", "whole"]);
});

test("a failure in mid-answer is an error part, on every page", { timeout }, async () => {
  const id = unique();
  const pages = [open(id), open(id)];
  const sent = pages[0].chat.sendMessage({ text: "hello" });
  await until(pages[0].chat, partial(AT_ONCE));
  const followed = pages[1].chat.resumeStream();
  await until(pages[1].chat, partial(AT_ONCE));
  await backend.fail(id);
  await Promise.all([sent, followed]);
  for (const { chat, finishes } of pages) {
    assert.equal(chat.status, "error");
    assert.equal(chat.error.message, "The answer could not be completed.");
    assert.equal(finishes[0].isError, true);
    assert.deepEqual(texts(chat.lastMessage), [AT_ONCE]);
  }
});

test("an answer that is refused before it begins keeps its own words", { timeout }, async () => {
  const { chat } = open(unique());
  await chat.sendMessage({ text: "refuse" });
  assert.equal(chat.status, "error");
  assert.deepEqual(JSON.parse(chat.error.message), { detail: "No." });
});

test("regenerating while the answer is live replaces it", { timeout }, async () => {
  const id = unique();
  const page = open(id);
  void page.chat.sendMessage({ text: "hello" });
  await until(page.chat, partial(AT_ONCE));
  await page.chat.stop();
  const again = page.chat.regenerate();
  await until(page.chat, (chat) => chat.lastMessage.id === "answer-2" && texts(chat.lastMessage)[0] === AT_ONCE);
  await backend.write(id);
  await again;
  assertWhole(page.chat.lastMessage, 2);
  assert.deepEqual(await backend.outcomes(id), ["abandoned", "whole"]);
});

test("an answer whose start was dropped is an error, not an empty page", { timeout }, async () => {
  const small = await startBackend({ max_stream_bytes: 2048 });
  try {
    const id = unique();
    const first = open(id, { url: small.url });
    void first.chat.sendMessage({ text: "hello" });
    await until(first.chat, partial(AT_ONCE));
    await first.chat.stop();
    await small.write(id, 53); // all but the last
    const dropped = async () => {
      const body = JSON.stringify({ conversation_ids: [id] });
      const response = await fetch(`${small.url}/v1/streams/lookup`, { method: "POST", body });
      return (await response.json())[0].dropped_bytes;
    };
    while (!(await dropped()));
    const second = open(id, { url: small.url });
    await second.chat.resumeStream();
    assert.equal(second.chat.status, "error");
    assert.equal(JSON.parse(second.chat.error.message).detail.code, "offset_lost");
  } finally {
    await small.stop();
  }
});

test("the parts are read without a chat, too", { timeout }, async () => {
  const id = unique();
  const transport = new DefaultChatTransport({ api: `${backend.url}/api/chat` });
  const ask = { role: "user", id: "q", parts: [{ type: "text", text: "hello" }] };
  const stream = await transport.sendMessages({ chatId: id, messages: [ask], trigger: "submit-message" });
  await backend.write(id);
  let last;
  for await (const message of readUIMessageStream({ stream })) last = message;
  assertWhole(last);
});
