// Lookup: many questions, few requests.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { ResumableError, lookup, resumable } from "../../../fastapi_resumable/static/resumable.js";
import { collect, script, send, startLine, startServer } from "./support.mjs";

let server;
let line;
let here;
before(async () => {
  server = await startServer({ owned: true });
  line = await startLine(server.port);
  here = { prefix: `${line.url}/v1` };
  const finished = ["a", "a::1", "ab", "b", ...Array.from({ length: 40 }, (_, n) => `many-${n}`)];
  for (const id of finished) await collect(resumable(`${server.url}/script`, script([send("data: 1\n\n")], { id })));
});
after(async () => {
  await line.stop();
  await server.stop();
});

const ids = (items) => items.map((item) => item.conversation_id).sort();

test("lookup tells what the server knows", async () => {
  const [item] = await lookup(["b", "nowhere"], here);
  assert.equal(item.conversation_id, "b");
  assert.equal(item.status, "completed");
  assert.equal(item.is_done, true);
  assert.match(item.epoch, /^[a-z2-7]{16}$/);
});

test("calls in one tick share a request, and each gets its own", async () => {
  line.requests.length = 0;
  const later = Promise.resolve().then(() => lookup(["b"], here));
  const answers = await Promise.all([lookup(["a"], here), lookup(["ab", "a"], here), lookup([], here), later]);
  assert.deepEqual(answers.map(ids), [["a", "a::1"], ["a", "a::1", "ab"], [], ["b"]]);
  assert.equal(line.requests.length, 1);
  await lookup(["a"], here);
  assert.equal(line.requests.length, 2);
});

test("a request asks for 1,000 ids at most", async () => {
  line.requests.length = 0;
  const many = Array.from({ length: 2500 }, (_, n) => `many-${n}`);
  assert.equal((await lookup(new Set([...many, ...many]), here)).length, 40);
  assert.equal(line.requests.length, 3);
});

test("a stream that two requests have found is listed once", async () => {
  const many = Array.from({ length: 1500 }, (_, n) => `none-${n}`);
  assert.deepEqual(ids(await lookup(["a", ...many, "a::1"], here)), ["a", "a::1"]);
});

test("to ask for nothing costs nothing", async () => {
  line.requests.length = 0;
  assert.deepEqual(await lookup([], here), []);
  assert.equal(line.requests.length, 0);
});

test("what is asked with other credentials is another request", async () => {
  const theirs = { ...here, headers: { "X-User": "somebody else" } };
  const answers = await Promise.all([lookup(["a"], here), lookup(["a"], theirs)]);
  assert.deepEqual(answers.map(ids), [["a", "a::1"], []]);
});

test("everybody who asked hears of a failure, and can ask again", async () => {
  const wrong = { prefix: `${line.url}/nowhere` };
  for (const result of await Promise.allSettled([lookup(["a"], wrong), lookup(["b"], wrong)])) {
    assert.ok(result.reason instanceof ResumableError);
    assert.equal(result.reason.status, 404);
  }
  line.refuses = true;
  line.cut();
  await assert.rejects(lookup(["a"], here), TypeError);
  line.refuses = false;
  assert.equal((await lookup(["b"], here)).length, 1);
});
