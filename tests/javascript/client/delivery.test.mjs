// Everything arrives once and in order, wherever the line breaks.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { resumable, restore, resume } from "../../../fastapi_resumable/static/resumable.js";
import { becomes, collect, memoryStore, script, seeded, send, startLine, startServer, states } from "./support.mjs";

let server;
let plain; // the same with `event_ids=False`
before(async () => {
  [server, plain] = await Promise.all([startServer({ ping: 0.05 }), startServer({ event_ids: false })]);
});
after(() => Promise.all([server.stop(), plain.stop()]));

const quick = { minDelay: 1, maxDelay: 4 };
const WORDS = Array.from({ length: 400 }, (_, n) => `${n} é 漢字 🦄 ${"x".repeat(n % 40)}`);

async function broken(target, seed, most, run) {
  const random = seeded(seed);
  const line = await startLine(target.port, () => (line.breaks < 200 ? 150 + Math.floor(random() * most) : Infinity));
  try {
    return await run(line);
  } finally {
    await line.stop();
  }
}

test("events arrive exactly once over 200 cuts at random bytes", { timeout: 200_000 }, async () => {
  await broken(server, 1, 600, async (line) => {
    const steps = WORDS.map((word) => send(`event: word\ndata: ${word}\ndata: and more\n\n`));
    const stream = resumable(`${line.url}/script`, { ...script(steps), ...quick });
    const seen = states(stream);
    const events = await collect(stream);
    assert.deepEqual(events.map(({ data }) => data), WORDS.map((word) => `${word}\nand more`));
    assert.ok(events.every(({ type, id }) => type === "word" && /^[a-z2-7]{16}-\d+$/.test(id)));
    assert.equal(line.breaks, 200);
    assert.equal(seen.at(0), "connecting");
    assert.equal(seen.at(-1), "done");
    assert.equal((await server.journal()).filter((entry) => entry === "called:script").length, 1);
  });
});

for (const [name, wire] of [
  ["without ids", (word) => `data: ${word}\n\n`],
  ["with ids of the application's own, some of them the same", (word, n) => `id: ${n % 7}\ndata: ${word}\n\n`],
  ["with CR LF for line ends", (word) => `: comment\r\ndata: ${word}\r\n\r\n`],
  ["with CR for line ends", (word) => `data: ${word}\r\r`],
]) {
  test(`events ${name} arrive exactly once over 200 cuts`, { timeout: 200_000 }, async () => {
    await broken(plain, 2, 300, async (line) => {
      const steps = WORDS.map((word, n) => send(wire(word, n)));
      const events = await collect(resumable(`${line.url}/script`, { ...script(steps), ...quick }));
      assert.deepEqual(events.map(({ data }) => data), WORDS);
      assert.equal(line.breaks, 200);
    });
  });
}

test("text arrives exactly once, cut within characters too", { timeout: 200_000 }, async () => {
  await broken(server, 3, 200, async (line) => {
    const whole = WORDS.join("");
    const steps = WORDS.map((word) => send(word));
    const stream = resumable(`${line.url}/script`, { ...script(steps, { media_type: "text/plain" }), ...quick });
    assert.equal((await collect(stream.text())).join(""), whole);
    assert.equal(stream.offset, Buffer.byteLength(whole));
    assert.ok(line.breaks > 50);
  });
});

test("bytes arrive exactly once", async () => {
  await broken(server, 4, 3000, async (line) => {
    const bytes = Buffer.from(Array.from({ length: 50_000 }, (_, n) => (n * 7919) % 256));
    const request = script([send(bytes)], { media_type: "audio/mpeg" });
    const stream = resumable(`${line.url}/script`, { ...request, ...quick });
    assert.deepEqual(Buffer.concat(await collect(stream.bytes())), bytes);
    assert.ok(line.breaks > 10);
  });
});

test("bytes are handed out as they came, not copied: a download may be large", async () => {
  const chunks = [new Uint8Array(100_000), new Uint8Array(100_000).fill(1)];
  const body = new ReadableStream({ start: (controller) => chunks.forEach((chunk) => controller.enqueue(chunk)) });
  const headers = { "X-Stream-Epoch": "a".repeat(16), "Content-Location": "/v1/stream/x" };
  const received = [];
  const fetch = async () => new Response(body, { headers });
  for await (const chunk of resumable("http://x/download", { fetch }).bytes()) {
    received.push(chunk);
    if (received.length === chunks.length) break;
  }
  assert.deepEqual(received, chunks);
  assert.ok(received.every((chunk, n) => chunk.buffer === chunks[n].buffer));
});

test("an event that no connection could carry whole arrives over several", async () => {
  await broken(server, 5, 2000, async (line) => {
    const huge = "漢".repeat(30_000);
    const events = await collect(resumable(`${line.url}/script`, { ...script([send(`data: ${huge}\n\n`)]), ...quick }));
    assert.equal(events[0].data, huge);
    assert.equal(events.length, 1);
    assert.ok(line.breaks > 20);
  });
});

test("a reader that comes back for its events asks with the last event's id", async () => {
  const line = await startLine(server.port);
  const steps = [send("data: 1\n\n"), ["wait", "by-id"], send("data: 2\n\n")];
  const stream = resumable(`${line.url}/script`, { ...script(steps), ...quick });
  const events = [];
  for await (const event of stream) {
    events.push(event);
    if (events.length > 1) continue;
    line.cut();
    await server.open("by-id");
  }
  assert.deepEqual(events.map(({ data }) => data), ["1", "2"]);
  const replays = line.requests.filter(({ method }) => method === "GET");
  assert.equal(replays[0].lastEventId, events[0].id);
  assert.match(replays[0].url, new RegExp(`epoch=${stream.epoch}`));
  await line.stop();
});

test("a byte order mark is dropped at the start alone", async () => {
  const steps = [send("\uFEFFdata: 1\n\n\uFEFFdata: 2\n\ndata: \uFEFF3\n\n")];
  const events = await collect(resumable(`${plain.url}/script`, script(steps)));
  assert.deepEqual(events.map(({ data }) => data), ["1", "\uFEFF3"]);
});

test("fields are read by the rules of the standard", async () => {
  const wire =
    "data\ndata:  two\n: data: no\nevent:x\nfoo: bar\n\n" +
    "event: gone\n\ndata: after\nid:\n\ndata: unfinished\n";
  const events = await collect(resumable(`${plain.url}/script`, script([send(wire)])));
  assert.deepEqual(events, [
    { type: "x", data: "\n two", id: "" },
    { type: "message", data: "after", id: "" },
  ]);
});

test("a stream can be followed from a byte", async () => {
  const steps = [send("data: 1\n\n"), send("data: 2\n\n")];
  const first = resumable(`${server.url}/script`, script(steps));
  const [{ id }] = await collect(first);
  const options = { prefix: `${server.url}/v1`, from: Number(id.split("-")[1]), epoch: first.epoch };
  assert.deepEqual((await collect(resume(first.id, options))).map(({ data }) => data), ["2"]);
});
