// How long the client waits, and for what: on a clock that the test moves.

import assert from "node:assert/strict";
import http from "node:http";
import { once } from "node:events";
import { after, before, test } from "node:test";

import { resumable, resume } from "../../../fastapi_resumable/static/resumable.js";
import { Clock, becomes, collect, script, send, startLine, startServer, until } from "./support.mjs";

const SILENCE = 40_000;

const timers = { setTimeout, clearTimeout, performance };

let server;
before(async () => {
  server = await startServer({ max_streams: 2, pending_timeout: 0.01 });
});
after(() => server.stop());

/** A server that answers with these, one after the other: `[status, headers, body]`. */
async function startAnswers(answers) {
  const requests = [];
  const fake = http.createServer((request, response) => {
    requests.push(request.url);
    const [status, headers, body] = answers.shift() ?? [404, {}, ""];
    response.writeHead(status, headers);
    response.end(body);
  });
  fake.listen(0, "127.0.0.1");
  await once(fake, "listening");
  return { url: `http://127.0.0.1:${fake.address().port}`, requests, stop: () => fake.close() };
}

/** What the client has paused for, without the watches over its connections. */
const pauses = (clock) => clock.pauses.filter((ms) => ms !== SILENCE);

async function backOff(options, attempts) {
  const clock = new Clock();
  const fetch = () => Promise.reject(new TypeError("There is no network."));
  const stream = resume("x", { prefix: "http://127.0.0.1:9", clock, fetch, ...options });
  for (let n = 1; n <= attempts; n++) {
    await until(() => pauses(clock).length === n);
    clock.pass(pauses(clock).at(-1));
  }
  stream.detach();
  return pauses(clock).slice(0, attempts);
}

test("the back-off is exponential up to its limit", async () => {
  const expected = [500, 1000, 2000, 4000, 8000, 15_000, 15_000];
  assert.deepEqual(await backOff({ random: () => 1 }, 7), expected);
  assert.deepEqual(await backOff({ random: () => 1, minDelay: 10, maxDelay: 50 }, 4), [10, 20, 40, 50]);
});

test("the jitter is full: anything between nothing and the back-off", async () => {
  const dice = [0, 0.5, 0.25, 1];
  assert.deepEqual(await backOff({ random: () => dice.shift() }, 4), [0, 500, 500, 4000]);
});

test("bytes that come begin the back-off anew", async () => {
  const clock = new Clock();
  const line = await startLine(server.port);
  const steps = [send("data: 1\n\n"), ["wait", "anew"], send("data: 2\n\n"), ["wait", "again"], send("data: 3\n\n")];
  const options = { prefix: `${server.url}/v1`, clock, random: () => 1 };
  const stream = resumable(`${line.url}/script`, { ...script(steps), ...options });
  const paused = (times) => until(() => pauses(clock).length === times);
  const spoil = {
    async 1() {
      line.refuses = true;
      line.cut();
      await paused(1);
      clock.pass(500);
      await paused(2);
      line.refuses = false;
      await server.open("anew");
      clock.pass(1000);
    },
    async 2() {
      line.cut();
      await paused(3);
      await server.open("again");
      clock.pass(500);
    },
    async 3() {},
  };
  const spoiling = [];
  for await (const { data } of stream) spoiling.push(spoil[data]());
  await Promise.all(spoiling);
  assert.deepEqual(pauses(clock), [500, 1000, 500]);
  await line.stop();
});

test("Retry-After is waited for, in seconds or as a date, and jitter on top", async () => {
  const hour = 3_600_000;
  for (const [given, wait] of [
    ["7", 7000],
    ["Wed, 21 Oct 2015 07:28:30 GMT", 30_000],
    ["nonsense", 0],
    ["1e9", 0],
    ["-7", 0],
    ["3000000", hour],
    ["9".repeat(400), hour],
    ["Fri, 31 Dec 9999 23:59:59 GMT", hour],
  ]) {
    // The server's clock, which is not this one.
    const headers = { Date: "Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After": given };
    const answers = await startAnswers([[503, headers, ""]]);
    const clock = new Clock();
    const stream = resume("x", { prefix: answers.url, clock, random: () => 0.2 });
    await becomes(stream, "reconnecting");
    assert.deepEqual(pauses(clock), [wait + 100], given);
    stream.detach();
    answers.stop();
  }
});

test("a server that is full is asked again when it says so", async () => {
  const clock = new Clock();
  const held = [send(": \n\n"), ["wait", "full"]];
  const holders = ["a", "b"].map((id) => resumable(`${server.url}/script`, script(held, { id })));
  await Promise.all(holders.map((holder) => becomes(holder, "open")));
  const stream = resumable(`${server.url}/script`, { ...script([send("data: 1\n\n")]), clock, random: () => 0 });
  await becomes(stream, "reconnecting");
  assert.equal(stream.error.code, "too_many_streams");
  assert.deepEqual(pauses(clock), [5000]);
  await server.open("full");
  await Promise.all(holders.map(collect));
  clock.pass(5000);
  assert.equal((await collect(stream)).length, 1);
});

test("a stream that is still queued is waited for", async () => {
  const waiting = { name: "pending", id: "pending", before: [["wait", "pending"]] };
  const first = resumable(`${server.url}/script`, script([send("data: 1\n\n")], waiting));
  await server.journal("waits:pending");
  const clock = new Clock();
  const second = resume("pending", { prefix: `${server.url}/v1`, clock, random: () => 0 });
  await becomes(second, "reconnecting");
  assert.equal(second.error.code, "stream_pending");
  await server.open("pending");
  await collect(first);
  clock.pass(1000);
  assert.equal((await collect(second)).length, 1);
});

test("the stream's own retry: is kept to", async () => {
  const clock = new Clock();
  const line = await startLine(server.port);
  const steps = [send("retry: 1234\n\nretry: soon\nretry: 2500\ndata: 1\n\n"), ["wait", "retry"], send("data: 2\n\n")];
  const options = { prefix: `${server.url}/v1`, clock, random: () => 0 };
  const stream = resumable(`${line.url}/script`, { ...script(steps), ...options });
  becomes(stream, "reconnecting").then(async () => {
    await server.open("retry");
    clock.pass(2500);
  });
  for await (const { data } of stream) if (data === "1") line.cut();
  assert.deepEqual(pauses(clock), [2500]);
  await line.stop();
});

test("a delay above what a timer can hold is clipped, and a silence of any length is one timer", async () => {
  const clock = new Clock();
  const line = await startLine(server.port);
  const steps = [send("retry: 3000000000\ndata: 1\n\nretry: -1\nretry: 1e3\ndata: 2\n\n"), ["forever"]];
  const options = { prefix: `${server.url}/v1`, clock, random: () => 0, silence: Infinity };
  const stream = resumable(`${line.url}/script`, { ...script(steps), ...options });
  becomes(stream, "reconnecting").then(() => stream.detach());
  for await (const { data } of stream) if (data === "2") line.cut();
  assert.ok(clock.pauses.every((ms) => ms < 2 ** 31), clock.pauses.join());
  assert.equal(clock.pauses.at(-1), 3_600_000);
  await line.stop();
});

test("a connection on which nothing comes any more is given up", async () => {
  const clock = new Clock();
  const line = await startLine(server.port);
  const steps = [send("data: 1\n\n"), ["wait", "silent"], send("data: 2\n\n")];
  const options = { prefix: `${server.url}/v1`, clock, random: () => 0 };
  const stream = resumable(`${line.url}/script`, { ...script(steps, { name: "silent" }), ...options });
  const events = [];
  for await (const { data } of stream) {
    events.push(data);
    if (data === "2") continue;
    line.mute();
    await server.open("silent");
    await server.journal("ended:silent");
    const watches = clock.pauses.length;
    until(() => clock.pauses.length > watches).then(async () => {
      clock.pass(SILENCE - 1);
      assert.equal(stream.state, "open");
      clock.pass(1);
      await becomes(stream, "reconnecting");
      clock.pass(0);
    });
  }
  assert.deepEqual(events, ["1", "2"]);
  await line.stop();
});

test("a stop does not wait for a connection that is dead", async () => {
  for (const isInLoop of [false, true]) {
    const clock = new Clock();
    const line = await startLine(server.port);
    const stream = resumable(`${line.url}/script`, { ...script([send("data: 1\n\n"), ["forever"]]), clock });
    for await (const _ of stream) {
      line.mute();
      if (isInLoop) await stream.stop();
      const watches = clock.pauses.length;
      until(() => clock.pauses.length > watches).then(async () => {
        if (!isInLoop) await stream.stop();
        assert.equal(stream.state, "open");
        assert.equal(clock.pauses.at(-1), 3000);
        clock.pass(3000);
      });
    }
    assert.equal(stream.state, "stopped");
    await line.stop();
  }
});

test("a server that does not answer is given up, and the request repeated", async () => {
  const clock = new Clock();
  const line = await startLine(server.port, () => 0);
  const options = { prefix: `${server.url}/v1`, clock, random: () => 0, silence: 5000 };
  const stream = resumable(`${line.url}/script`, { ...script([send("data: 1\n\n")], { name: "mute" }), ...options });
  await server.journal("ended:mute");
  line.allow = () => Infinity;
  clock.pass(5000);
  await becomes(stream, "reconnecting");
  clock.pass(0);
  assert.equal((await collect(stream)).length, 1);
  assert.equal((await server.journal()).filter((entry) => entry === "called:mute").length, 1);
  await line.stop();
});

test("what gateways answer passes; what the application refuses does not", async () => {
  const clock = { ...timers, setTimeout: (callback, ms) => setTimeout(callback, ms < SILENCE ? 0 : ms) };
  const begin = async (...answers) => {
    const all = await startAnswers(answers);
    const stream = resumable(all.url, { method: "POST", clock });
    await collect(stream).catch(() => {});
    all.stop();
    return [stream.state, all.requests.length, stream.error?.status];
  };
  const json = { "Content-Type": "application/json" };
  const own = JSON.stringify({ detail: { code: "upstream_failed", message: "The model is away." } });
  const ok = [200, {}, ""];
  for (const status of [408, 425, 429, 502, 503, 504, 522]) {
    assert.deepEqual(await begin([status, {}, "<html>"], ok), ["done", 2, undefined]);
  }
  for (const status of [400, 401, 403, 404, 422, 500, 501]) {
    assert.deepEqual(await begin([status, {}, "<html>"], ok), ["lost", 1, status]);
  }
  assert.deepEqual(await begin([502, json, own], ok), ["lost", 1, 502]);
  assert.deepEqual(await begin([502, { ...json, "Retry-After": "1" }, own], ok), ["done", 2, undefined]);
});

test("a replay that fails is tried again, unless it is the client's fault", async () => {
  const follow = async (...answers) => {
    const all = await startAnswers(answers);
    const stream = resume("x", { prefix: all.url, minDelay: 1 });
    await collect(stream).catch(() => {});
    all.stop();
    return [stream.state, all.requests.length];
  };
  assert.deepEqual(await follow([500, {}, ""], [502, {}, ""], [200, {}, ""]), ["done", 3]);
  for (const status of [400, 401, 403, 404, 409, 410, 416]) {
    assert.deepEqual(await follow([status, {}, ""], [200, {}, ""]), ["lost", 1]);
  }
});
