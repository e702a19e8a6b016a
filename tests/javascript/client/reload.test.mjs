// What is kept for a reload: here a reload is a `restore` from the same store.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { restore, resumable } from "../../../fastapi_resumable/static/resumable.js";
import { becomes, collect, memoryStore, script, send, startLine, startServer, until } from "./support.mjs";

let server;
let prefix;
before(async () => {
  server = await startServer();
  prefix = `${server.url}/v1`;
});
after(() => server.stop());

const start = (steps, more = {}, options = {}) =>
  resumable(`${server.url}/script`, { ...script(steps, more), prefix, minDelay: 1, ...options });
const two = (gate) => [send("data: 1\n\n"), ["wait", gate], send("data: 2\n\n")];
const data = (events) => events.map((event) => event.data);

test("a stream goes on where it was saved, with what was saved", async () => {
  const store = memoryStore();
  const stream = start(two("saved"), { id: "saved" }, { key: "chat", store });
  for await (const event of stream) {
    stream.save({ rendered: event.data });
    break; // the page is reloaded
  }
  const again = await restore("chat", { store, prefix });
  assert.deepEqual(again.saved, { rendered: "1" });
  assert.deepEqual([again.id, again.epoch, again.offset], ["saved", stream.epoch, stream.offset]);
  await server.open("saved");
  assert.deepEqual(data(await collect(again)), ["2"]);
});

test("a stream of which nothing was saved is read from its start", async () => {
  const store = memoryStore();
  const stream = start(two("start"), {}, { key: "chat", store });
  for await (const _ of stream) break;
  const again = await restore("chat", { store, prefix });
  assert.equal(again.saved, undefined);
  await server.open("start");
  assert.deepEqual(data(await collect(again)), ["1", "2"]);
});

test("what was saved before the page went is a place between two events, though more has come", async () => {
  const store = memoryStore();
  const stream = start([send("data: 1\n\ndata: 2\n\n")], {}, { key: "chat", store });
  const seen = [];
  for await (const event of stream) {
    seen.push(event.data);
    stream.save(event.data);
    stream.detach();
  }
  assert.deepEqual(seen, ["1"]);
  assert.deepEqual(data(await collect(await restore("chat", { store, prefix }))), ["2"]);
});

test("text goes on between two characters", async () => {
  const whole = Buffer.from("a漢🦄é");
  for (let cut = 1; cut < whole.length; cut++) {
    const store = memoryStore();
    const gate = `text-${cut}`;
    const steps = [send(whole.subarray(0, cut)), ["wait", gate], send(whole.subarray(cut))];
    const stream = start(steps, { media_type: "text/plain" }, { key: "chat", store });
    let text = "";
    for await (const piece of stream.text()) {
      stream.save((text += piece));
      break;
    }
    await server.open(gate);
    const again = await restore("chat", { store, prefix });
    assert.equal(again.saved + (await collect(again.text())).join(""), whole.toString(), `after ${cut} bytes`);
  }
});

test("what is over is forgotten", async () => {
  for (const steps of [[send("data: 1\n\n")], [["raise", "x"]], [["http_error", 403]]]) {
    const store = memoryStore();
    const stream = start(steps, {}, { key: "chat", store });
    assert.equal(store.items.size, 1);
    await collect(stream).catch(() => {});
    stream.save("too late");
    assert.equal(store.items.size, 0);
    assert.equal(await restore("chat", { store, prefix }), null);
  }
  const store = memoryStore();
  const stopped = start([send("data: 1\n\n"), ["forever"]], {}, { key: "chat", store });
  for await (const _ of stopped) await stopped.stop();
  assert.equal(store.items.size, 0);
});

test("a request that the reload overtook is repeated, and runs once", async () => {
  const store = memoryStore();
  const steps = [send("data: 1\n\n")];
  const stream = start(steps, { name: "overtaken", before: [["wait", "overtaken"]] }, { key: "chat", store });
  await server.journal("waits:overtaken");
  stream.detach();
  const again = await restore("chat", { store, prefix, minDelay: 1 });
  await server.open("overtaken");
  assert.deepEqual(data(await collect(again)), ["1"]);
  assert.equal((await server.journal()).filter((entry) => entry === "called:overtaken").length, 1);
});

test("a request that never arrived is sent", async () => {
  const line = await startLine(server.port);
  line.refuses = true;
  const store = memoryStore();
  const request = script([send("data: 1\n\n")], { id: "sent" });
  const stream = resumable(`${line.url}/script`, { ...request, key: "chat", store });
  await becomes(stream, "reconnecting");
  stream.detach();
  line.refuses = false;
  const again = await restore("chat", { store, headers: { Authorization: "Bearer again" } });
  assert.deepEqual(data(await collect(again)), ["1"]);
  assert.match(line.requests[0].head, /authorization: Bearer again/i);
  assert.match(line.requests[0].head, /x-conversation-id: sent/i);
  await line.stop();
});

test("no credentials are kept, and no body once the stream has begun", async () => {
  const store = memoryStore();
  const request = script(two("secret"));
  const headers = { ...request.headers, Authorization: "Bearer secret-1", "X-Api-Key": "secret-2" };
  const stream = resumable(`${server.url}/script`, { ...request, headers, key: "chat", store });
  const kept = () => [...store.items.values()].join();
  assert.match(kept(), /"steps/);
  assert.doesNotMatch(kept(), /secret-/);
  await becomes(stream, "open");
  assert.doesNotMatch(kept(), /steps/);
  assert.doesNotMatch(kept(), /secret-/);
  await stream.stop();
  await collect(stream);
});

test("a body that cannot be kept is not repeated; the stream is kept once it has begun", async () => {
  const store = memoryStore();
  const { body, ...request } = script(two("blob"));
  const stream = resumable(`${server.url}/script`, { ...request, body: new Blob([body]), key: "chat", store });
  assert.equal(store.items.size, 0);
  await becomes(stream, "open");
  stream.detach();
  await server.open("blob");
  assert.deepEqual(data(await collect(await restore("chat", { store, prefix }))), ["1", "2"]);
});

test("a store may be asynchronous, and may fail", async () => {
  const store = memoryStore();
  const slow = {
    getItem: async (name) => store.getItem(name),
    setItem: async (name, value) => store.setItem(name, value),
    removeItem: async (name) => store.removeItem(name),
  };
  const stream = start([send("data: 1\n\n")], {}, { key: "chat", store: slow });
  for await (const _ of stream) break;
  assert.equal((await collect(await restore("chat", { store: slow, prefix }))).length, 1);
  await until(() => store.items.size === 0);

  const full = {
    setItem() {
      throw new Error("full");
    },
    async removeItem() {
      throw new Error("full");
    },
    getItem() {
      throw new Error("forbidden");
    },
  };
  assert.equal(await restore("chat", { store: full, prefix }), null);
  assert.equal((await collect(start([send("data: 1\n\n")], {}, { key: "chat", store: full }))).length, 1);
});

test("two keys are two streams, and without a key nothing is kept", async () => {
  const store = memoryStore();
  const one = start(two("one"), { id: "one" }, { key: "1", store });
  const other = start(two("one"), { id: "other" }, { key: "2", store });
  const none = start(two("one"), { id: "none" }, { store });
  await Promise.all([one, other, none].map((stream) => becomes(stream, "open")));
  assert.equal(store.items.size, 2);
  assert.equal((await restore("1", { store, prefix })).id, "one");
  assert.equal((await restore("2", { store, prefix })).id, "other");
  await server.open("one");
  await Promise.all([one, other, none].map((stream) => collect(stream)));
});

test("a stream that is gone after the reload is lost, and forgotten", async () => {
  const store = memoryStore();
  const stream = start([send("data: 1\n\n"), ["forever"]], {}, { key: "chat", store });
  for await (const _ of stream) break;
  await stream.stop();
  const again = await restore("chat", { store, prefix });
  await assert.rejects(collect(again), { code: "stream_not_found" });
  assert.equal(again.state, "lost");
  assert.equal(store.items.size, 0);
});
