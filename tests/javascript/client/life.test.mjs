// How a stream ends, and what its states say.

import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import { after, before, test } from "node:test";

import { ResumableError, restore, resumable, resume, stop } from "../../../fastapi_resumable/static/resumable.js";
import { Clock, becomes, collect, memoryStore, script, send, startLine, startServer, states, until } from "./support.mjs";

let server;
let prefix;
before(async () => {
  server = await startServer({ stop_grace: 0.5 });
  prefix = `${server.url}/v1`;
});
after(() => server.stop());

const quick = { minDelay: 1, maxDelay: 4 };
const start = (steps, more = {}, options = {}) =>
  resumable(`${server.url}/script`, { ...script(steps, more), prefix, ...quick, ...options });
const FOREVER = [send("data: 1\n\n"), ["forever"]];

/** Read to the end, which is an error; return what came before, and the error. */
async function fail(iterable) {
  const events = [];
  try {
    for await (const event of iterable) events.push(event.data ?? event);
  } catch (error) {
    return { events, error };
  }
  throw new assert.AssertionError({ message: "it ended well" });
}

test("a stream that completes is connecting, open and done", async () => {
  const stream = start([send("data: 1\n\n")]);
  const seen = states(stream);
  assert.equal(stream.response, null);
  assert.deepEqual((await collect(stream)).map(({ data }) => data), ["1"]);
  assert.deepEqual(seen, ["connecting", "open", "done"]);
  assert.equal(stream.error, null);
  assert.equal(stream.response.headers.get("X-Conversation-Id"), stream.id);
  assert.match(stream.epoch, /^[a-z2-7]{16}$/);
});

test("a stream that fails throws the server's code and message after its events", async () => {
  for (const media_type of ["text/event-stream", "text/event-stream; charset=utf-8"]) {
    const stream = start([send("data: 1\n\n"), ["raise", "secret"]], { media_type });
    const { events, error } = await fail(stream);
    assert.deepEqual(events, ["1"]);
    assert.ok(error instanceof ResumableError);
    assert.equal(error.code, "producer_failed");
    assert.ok(error.message);
    assert.equal(stream.state, "lost");
    assert.equal(stream.error, error);
  }
});

test("text that breaks off because its producer failed is not taken for whole", async () => {
  const stream = start([send("half"), ["raise", "secret"]], { media_type: "text/plain" });
  const { events, error } = await fail(stream.text());
  assert.equal(events.join(""), "half");
  assert.equal(error.code, "failed");
  assert.equal(stream.state, "lost");
});

test("an error of the application's own is an event like any other", async () => {
  const own = ['{"code":"x","message":"own"}', '{"code":"x","message":"m","error":{"code":"y"}}', '{"code":"', "null"];
  const stream = start(own.map((data) => send(`event: error\ndata: ${data}\n\n`)));
  assert.deepEqual((await collect(stream)).map(({ type, data }) => [type, data]), own.map((data) => ["error", data]));
  assert.equal(stream.state, "done");
});

test("stop ends the generation, on the server and for every reader", async () => {
  const stream = start(FOREVER, { name: "stopped" });
  const other = resume(stream.id, { prefix, ...quick });
  const events = [];
  for await (const event of stream) {
    events.push(event.data);
    await becomes(other, "open");
    await stream.stop();
  }
  assert.deepEqual(events, ["1"]);
  assert.equal(stream.state, "stopped");
  await collect(other);
  assert.equal(other.state, "stopped");
  await server.journal("ended:stopped");
  assert.equal((await fetch(`${prefix}/stream/${stream.id}`)).status, 404);
});

test("stop ends a stream that has not begun, and what waits for its connection", async () => {
  const queued = start([], { name: "queued", before: [["wait", "never"]] });
  await server.journal("waits:never");
  await queued.stop();
  assert.deepEqual(await collect(queued), []);
  assert.equal(queued.state, "stopped");

  const line = await startLine(server.port);
  const cut = resumable(`${line.url}/script`, { ...script(FOREVER), prefix, minDelay: 1e9, random: () => 1 });
  for await (const _ of cut) {
    line.refuses = true;
    line.cut();
    becomes(cut, "reconnecting").then(() => {
      line.refuses = false;
      return cut.stop();
    });
  }
  assert.equal(cut.state, "stopped");
  await line.stop();
});

test("stop ends a stream of text, which cannot say so itself", async () => {
  const stream = start([send("some"), ["forever"]], { media_type: "text/plain" });
  for await (const _ of stream.text()) await stream.stop();
  assert.equal(stream.state, "stopped");
});

test("a late stop does not hit the next answer", async () => {
  const first = start([send("data: 1\n\n")], { id: "late" });
  await collect(first);
  const second = start([send("data: 2\n\n"), ["wait", "late"]], { id: "late" });
  await becomes(second, "open");
  await first.stop();
  await stop("late", { prefix, epoch: first.epoch });
  await server.open("late");
  assert.deepEqual((await collect(second)).map(({ data }) => data), ["2"]);
  assert.equal(second.state, "done");
});

test("stop says when the server does not hear it, and can be repeated", async () => {
  const line = await startLine(server.port);
  const stream = resumable(`${line.url}/script`, { ...script(FOREVER), prefix, ...quick });
  await becomes(stream, "open");
  line.refuses = true;
  await assert.rejects(stream.stop());
  line.refuses = false;
  await stream.stop();
  await collect(stream);
  assert.equal(stream.state, "stopped");
  await line.stop();
});

test("anybody who knows the id can stop a stream", async () => {
  const stream = start(FOREVER, { id: "a/b c::1" });
  await becomes(stream, "open");
  await assert.rejects(stop("a/b c::1", { prefix, signal: AbortSignal.abort() }), { name: "AbortError" });
  assert.equal(stream.state, "open");
  // The page may be left at once, also where a signal is given.
  const kept = [];
  const fetch = (url, init) => kept.push(init.keepalive) && globalThis.fetch(url, init);
  await stop("a/b c::1", { prefix, fetch, signal: new AbortController().signal });
  assert.deepEqual(kept, [true]);
  await collect(stream);
  assert.equal(stream.state, "stopped");
});

test("detach leaves the stream running, and ends the iteration quietly", async () => {
  const stream = start([send("data: 1\n\n"), ["wait", "detached"], send("data: 2\n\n")], { name: "detached" });
  for await (const _ of stream) stream.detach();
  assert.equal(stream.state, "detached");
  await server.open("detached");
  await server.journal("finished:detached");
  const { id, epoch, offset } = stream;
  const rest = resume(id, { prefix, epoch, from: offset });
  assert.deepEqual((await collect(rest)).map(({ data }) => data), ["2"]);
});

test("to break out of the loop is to detach", async () => {
  const stream = start(FOREVER);
  for await (const _ of stream) break;
  assert.equal(stream.state, "detached");
  await stream.stop();
});

test("an AbortSignal detaches, and throws its reason", async () => {
  const controller = new AbortController();
  const stream = start(FOREVER, {}, { signal: controller.signal });
  const reason = new Error("enough");
  const { events, error } = await fail(
    (async function* () {
      for await (const event of stream) {
        yield event;
        controller.abort(reason);
      }
    })(),
  );
  assert.deepEqual(events, ["1"]);
  assert.equal(error, reason);
  assert.equal(stream.state, "detached");
  await stream.stop();

  const late = start(FOREVER, {}, { signal: controller.signal });
  await late.stop();
  assert.equal((await fail(late)).error, reason);
});

test("permanent answers are typed errors, and end it", async () => {
  const done = start([send("data: 1\n\n")]);
  await collect(done);
  for (const [begin, status, code] of [
    [() => resume("nowhere", { prefix }), 404, "stream_not_found"],
    [() => resume(done.id, { prefix, epoch: "a".repeat(16) }), 409, "stream_replaced"],
    [() => resume(done.id, { prefix, from: 1e6 }), 416, "offset_out_of_range"],
    [() => resume("\n", { prefix }), 400, "invalid_stream_id"],
    [() => start([], { before: [["http_error", 401]] }), 401, ""],
    [() => start([], { before: [["http_error", 500]] }), 500, ""],
    [() => start([], { id: "x".repeat(600) }), 400, "invalid_stream_id"],
    [() => resumable(`${server.url}/script`, { method: "POST", body: "no script" }), 422, ""],
  ]) {
    const stream = begin();
    const seen = states(stream);
    const { error } = await fail(stream);
    assert.ok(error instanceof ResumableError);
    assert.deepEqual([error.status, error.code], [status, code]);
    assert.ok(error.message.length > 5);
    assert.deepEqual(seen, ["connecting", "lost"]);
  }
});

test("what the server says beside code and message is in the error's detail", async () => {
  const done = start([send("data: 1\n\n")]);
  await collect(done);
  const { error } = await fail(resume(done.id, { prefix, from: 1e6 }));
  assert.equal(error.detail.tail, done.offset);
});

test("a stream that is replaced says so", async () => {
  const first = start(FOREVER, { id: "twice" });
  await becomes(first, "open");
  const second = start([send("data: 2\n\n")], { id: "twice" });
  const { error } = await fail(first);
  assert.equal(error.code, "replaced");
  assert.equal(first.state, "lost");
  assert.deepEqual((await collect(second)).map(({ data }) => data), ["2"]);
});

test("a reader that was away while its stream was replaced does not read the other one", async () => {
  const line = await startLine(server.port);
  const options = { ...script(FOREVER, { id: "away" }), prefix, minDelay: 1e9, random: () => 1 };
  const first = resumable(`${line.url}/script`, options);
  await becomes(first, "open");
  line.cut();
  await until(() => first.state === "open");
  const reading = fail(first);
  await becomes(first, "reconnecting");
  const next = await collect(start([send("data: 2\n\n")], { id: "away" }));
  assert.equal(next.length, 1);
  first.detach();
  await assert.rejects(reading, /ended well/);
  const { error } = await fail(resume("away", { prefix, epoch: first.epoch, from: first.offset }));
  assert.equal(error.code, "stream_replaced");
  await line.stop();
});

test("a request that fails before it is answered is repeated, and runs once", async () => {
  const line = await startLine(server.port);
  line.refuses = true;
  const request = script([send("data: 1\n\n")], { name: "repeated", before: [["wait", "repeated"]] });
  const stream = resumable(`${line.url}/script`, { ...request, prefix, ...quick });
  await becomes(stream, "reconnecting");
  line.refuses = false;
  await server.journal("waits:repeated");
  line.cut();
  await until(() => line.requests.length > 1);
  await server.open("repeated");
  assert.deepEqual((await collect(stream)).map(({ data }) => data), ["1"]);
  assert.ok(line.requests.every(({ method }) => method === "POST" || method === "HEAD"));
  const posts = line.requests.filter(({ method }) => method === "POST");
  const keys = posts.map(({ head }) => /idempotency-key: (.*)/i.exec(head)[1]);
  assert.equal(new Set(keys).size, 1);
  assert.equal((await server.journal()).filter((entry) => entry === "called:repeated").length, 1);
  await line.stop();
});

test("the id and the idempotency key of the caller's are used", async () => {
  const line = await startLine(server.port);
  const given = { "x-conversation-id": "mine", "idempotency-key": "turn-1", "Content-Type": "application/json" };
  const first = resumable(`${line.url}/script`, { ...script([send("data: 1\n\n")]), headers: given });
  assert.equal(first.id, "mine");
  await collect(first);
  const again = resumable(`${line.url}/script`, { ...script([send("data: 2\n\n")]), headers: given });
  assert.deepEqual((await collect(again)).map(({ data }) => data), ["1"]);
  const umlaut = start([send("data: 1\n\n")], {}, { id: "für dich 🦄" });
  await collect(umlaut);
  assert.equal((await collect(resume("für dich 🦄", { prefix }))).length, 1);
  await line.stop();
});

test("an endpoint that is not resumable can be read as far as its connection goes", async () => {
  const other = await startServer({ decorated: false });
  const line = await startLine(other.port);
  const one = [send("data: 1\n\n")];
  const whole = resumable(`${line.url}/script`, { ...script(one), prefix: `${line.url}/v1`, ...quick });
  assert.equal((await collect(whole)).length, 1);
  assert.equal(whole.state, "done");
  const cut = resumable(`${line.url}/script`, { ...script([...one, ["forever"]]), prefix: `${line.url}/v1`, ...quick });
  const { error } = await fail(
    (async function* () {
      for await (const event of cut) {
        yield event;
        line.cut();
      }
    })(),
  );
  assert.equal(error, cut.error);
  assert.equal(cut.state, "lost");
  await line.stop();
  await other.stop();
});

test("a proxy that ends a response in order does not end the stream", async () => {
  let cuts = 0;
  const proxy = http.createServer((request, response) => {
    const { method, url: path, headers } = request;
    const upstream = http.request(`${server.url}${path}`, { method, headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      if (cuts++ > 20) return answer.pipe(response);
      answer.once("data", (data) => {
        response.end(data.subarray(0, 30));
        answer.destroy();
      });
      answer.once("end", () => response.end());
    });
    request.pipe(upstream);
  });
  proxy.listen(0, "127.0.0.1");
  await once(proxy, "listening");
  const url = `http://127.0.0.1:${proxy.address().port}`;
  const words = Array.from({ length: 20 }, (_, n) => `word ${n}`);
  const steps = words.map((word) => send(`data: ${word}\n\n`));
  const stream = resumable(`${url}/script`, { ...script(steps), ...quick });
  assert.deepEqual((await collect(stream)).map(({ data }) => data), words);
  const text = resumable(`${url}/script`, { ...script(words.map(send), { media_type: "text/plain" }), ...quick });
  cuts = 0;
  assert.equal((await collect(text.text())).join(""), words.join(""));
  assert.ok(cuts > 5);
  proxy.closeAllConnections();
  proxy.close();
});

/** A server that answers with what `answer` does, by the number of the request. */
async function startFake(answer) {
  const requests = [];
  const fake = http.createServer((request, response) => {
    requests.push(`${request.method} ${new URL(request.url, "http://x").searchParams.get("from")}`);
    response.setHeader("X-Stream-Epoch", "a".repeat(16));
    answer(requests.length, response, request);
  });
  fake.listen(0, "127.0.0.1");
  await once(fake, "listening");
  const stop = () => {
    fake.closeAllConnections();
    fake.close();
  };
  return { prefix: `http://127.0.0.1:${fake.address().port}`, requests, stop };
}

test("a connection that breaks before its first byte does not end a stream that is complete", async () => {
  const fake = await startFake((number, response, { method }) => {
    response.setHeader("X-Stream-Status", "completed");
    response.setHeader("X-Stream-Total-Bytes", "9");
    if (method === "HEAD") response.end();
    else if (number > 2) response.end("data: 1\n\n");
    else {
      response.flushHeaders();
      setImmediate(() => response.destroy());
    }
  });
  const stream = resume("x", { prefix: fake.prefix, ...quick });
  assert.deepEqual((await collect(stream)).map(({ data }) => data), ["1"]);
  assert.deepEqual(fake.requests, ["GET 0", "HEAD 0", "GET 0", "HEAD 9"]);
  fake.stop();
});

test("a stop that overtook its own request is repeated, with the epoch", async () => {
  let answer;
  const epochs = [];
  const fake = await startFake((number, response, { method, url }) => {
    if (method === "POST") answer = response;
    else {
      if (method === "DELETE") epochs.push(new URL(url, "http://x").searchParams.get("epoch"));
      response.statusCode = method === "DELETE" ? 204 : 404;
      response.end();
      if (epochs.length === 2) answer.end();
    }
  });
  const stream = resumable(`${fake.prefix}/start`, { method: "POST", prefix: fake.prefix, ...quick });
  await until(() => answer);
  await stream.stop();
  answer.write("data: 1\n\n");
  await collect(stream);
  assert.equal(stream.state, "stopped");
  assert.deepEqual(epochs, ["", "a".repeat(16)]);
  fake.stop();
});

test("a stop that overtook its own request waits for the head, which a server may hold back", async () => {
  const clock = new Clock();
  const deletes = [];
  let answer;
  const slow = async (url, { method, signal }) => {
    if (method === "DELETE") return new Response(null, { status: deletes.push(url) && 204 });
    return new Promise((resolve, reject) => {
      answer = () => resolve(new Response("data: 1\n\n", { headers: { "X-Stream-Epoch": "a".repeat(16) } }));
      signal.addEventListener("abort", () => reject(signal.reason));
    });
  };
  const stream = resumable("http://x/start", { method: "POST", prefix: "http://x/v1", fetch: slow, clock });
  await stream.stop();
  clock.pass(2000);
  answer();
  for await (const _ of stream) break;
  assert.deepEqual(deletes.map((url) => new URL(url).searchParams.get("epoch")), ["", "a".repeat(16)]);
});

test("a stop that its own request overtook is repeated, with the epoch", async () => {
  const epochs = [];
  let hold;
  const fake = await startFake((_number, response, { method, url }) => {
    if (method === "POST") return response.write("data: 1\n\n", () => hold?.end());
    if (method === "DELETE") epochs.push(new URL(url, "http://x").searchParams.get("epoch"));
    response.statusCode = method === "DELETE" ? 204 : 404;
    if (epochs.length === 1 && method === "DELETE") hold = response;
    else response.end();
  });
  let post;
  const slow = async (url, init) => {
    if (init.method === "POST") await new Promise((resolve) => (post = resolve));
    return fetch(url, init);
  };
  const stream = resumable(`${fake.prefix}/start`, { method: "POST", prefix: fake.prefix, fetch: slow, ...quick });
  const stopping = stream.stop();
  await until(() => hold);
  post();
  await becomes(stream, "open");
  hold.end();
  await stopping;
  assert.deepEqual(epochs, ["", "a".repeat(16)]);
  stream.detach();
  fake.stop();
});

test("a stop of what has ended, or was refused, is not sent: it would hit an answer that others read", async () => {
  for (const status of [200, 409]) {
    const fake = await startFake((_number, response) => {
      response.statusCode = status;
      response.end();
    });
    const stream = resumable(`${fake.prefix}/start`, { method: "POST", prefix: fake.prefix, ...quick });
    await collect(stream).catch(() => {});
    assert.equal(stream.state, status === 200 ? "done" : "lost");
    await stream.stop();
    assert.deepEqual(fake.requests.filter((request) => request.startsWith("DELETE")), []);
    fake.stop();
  }
});

test("a stream that was lost on the way, for want of a fresh token say, can be stopped", async () => {
  const fake = await startFake((number, response, { method }) => {
    response.statusCode = method === "POST" ? 200 : method === "DELETE" ? 204 : 401;
    if (method === "POST") response.write("data: 1\n\n", () => response.destroy());
    else response.end();
  });
  const stream = resumable(`${fake.prefix}/start`, { method: "POST", prefix: fake.prefix, ...quick });
  await fail(stream);
  assert.equal(stream.state, "lost");
  await stream.stop();
  assert.match(fake.requests.at(-1), /^DELETE/);
  fake.stop();
});

test("half an event does not count as handed out", async () => {
  let first;
  const fake = await startFake((number, response) => {
    if (number === 1) (first = response).write("data: 1\n\n");
  });
  const stream = resume("x", { prefix: fake.prefix, ...quick });
  const reading = collect(stream);
  await until(() => stream.offset === 9);
  first.write("data: 2");
  setImmediate(() => first.end());
  await until(() => fake.requests.length === 2);
  assert.deepEqual(fake.requests, ["GET 0", "HEAD 16"]);
  assert.equal(stream.offset, 9);
  stream.detach();
  assert.equal((await reading).length, 1);
  fake.stop();
});

test("keep-alives at the end of a stream are not waited for", async () => {
  const event = `data: 1\nid: ${"a".repeat(16)}-33\n\n`;
  const fake = await startFake((number, response, { headers }) => {
    response.setHeader("X-Stream-Status", number < 3 ? "in_progress" : "completed");
    response.setHeader("X-Stream-Total-Bytes", "39");
    if (headers["last-event-id"]) response.statusCode = 204;
    response.end(number === 1 ? event : undefined);
  });
  const stream = resume("x", { prefix: fake.prefix, ...quick });
  assert.equal((await collect(stream)).length, 1);
  assert.deepEqual(fake.requests, ["GET 0", "HEAD 33", "GET 33", "HEAD 33"]);
  fake.stop();
});

test("a stream that was replaced as soon as it had ended, has ended", async () => {
  const fake = await startFake((number, response) => {
    if (number === 2) response.statusCode = 409;
    response.end("data: 1\n\n");
  });
  const stream = resume("x", { prefix: fake.prefix, ...quick });
  assert.equal((await collect(stream)).length, 1);
  assert.equal(stream.state, "done");
  fake.stop();
});

test("a stream that is gone when its response ends is not taken for whole", async () => {
  const fake = await startFake((number, response) => {
    if (number === 1) return response.end("data: 1\n\n");
    response.statusCode = 404;
    response.end('{"detail": {"code": "stream_not_found", "message": "Gone."}}');
  });
  const { events, error } = await fail(resume("x", { prefix: fake.prefix, ...quick }));
  assert.deepEqual(events, ["1"]);
  assert.equal(error.code, "stream_not_found");
  assert.deepEqual(fake.requests, ["GET 0", "HEAD 9", "GET 9"]);
  fake.stop();
});

test("a place that is gone when the response ends is not the end of the stream", async () => {
  for (const status of [400, 416]) {
    const fake = await startFake((number, response) => {
      if (number === 1) return response.end("data: 1\n\n");
      response.statusCode = status;
      response.end('{"detail": {"code": "offset_lost", "message": "Gone."}}');
    });
    const { events, error } = await fail(resume("x", { prefix: fake.prefix, ...quick }));
    assert.deepEqual(events, ["1"]);
    assert.equal(error.code, "offset_lost");
    fake.stop();
  }
});

test("a server that does not say how the stream ended is asked again", async () => {
  const fake = await startFake((number, response) => {
    if (number !== 2) response.end(number === 1 ? "data: 1\n\n" : "");
  });
  const stream = resume("x", { prefix: fake.prefix, ...quick, silence: 500 });
  assert.equal((await collect(stream)).length, 1);
  assert.deepEqual(fake.requests, ["GET 0", "HEAD 9", "GET 9", "HEAD 9"]);
  fake.stop();
});

test("a page that answers in the place of the stream is no part of it", async () => {
  const fake = await startFake((number, response) => {
    response.setHeader("X-Stream-Status", "completed");
    const isPage = number === 2 || number === 3;
    if (isPage) response.removeHeader("X-Stream-Epoch");
    response.end(isPage ? "data: sign in\n\n" : `data: ${number}\n\n`);
  });
  const stream = resume("x", { prefix: fake.prefix, ...quick });
  assert.deepEqual((await collect(stream)).map(({ data }) => data), ["1", "4"]);
  assert.deepEqual(fake.requests, ["GET 0", "HEAD 9", "GET 9", "GET 9", "HEAD 18"]);
  assert.equal(stream.state, "done");
  fake.stop();
});

test("a question about the end that is put off is asked again; one that cannot be answered is not", async () => {
  const follow = async (status) => {
    const fake = await startFake((number, response) => {
      response.setHeader("X-Stream-Status", "completed");
      if (number === 2) response.statusCode = status;
      response.end(number === 1 ? "data: 1\n\n" : number === 3 ? "data: 2\n\n" : "");
    });
    const stream = resume("x", { prefix: fake.prefix, ...quick });
    const events = await collect(stream);
    fake.stop();
    return [events.length, stream.state];
  };
  for (const status of [408, 425, 429, 503]) assert.deepEqual(await follow(status), [2, "done"]);
  for (const status of [401, 405, 501]) assert.deepEqual(await follow(status), [1, "done"]);
});

test("a response that a proxy has ended before the failure is gone on with", async () => {
  const log = "data: 1\n\ndata: 2\n\n";
  const fake = await startFake((_number, response, { method, url }) => {
    response.setHeader("X-Stream-Status", "failed");
    response.setHeader("X-Stream-Total-Bytes", `${log.length}`);
    const from = +new URL(url, "http://x").searchParams.get("from");
    response.end(method === "HEAD" ? "" : log.slice(from, from + 9));
  });
  const { events, error } = await fail(resume("x", { prefix: fake.prefix, ...quick }));
  assert.deepEqual(events, ["1", "2"]);
  assert.equal(error.code, "failed");
  fake.stop();
});

test("an answer that was not recorded is never gone on with, as its id may be an earlier one's", async () => {
  for (const sent of ["", "data: new\n\n"]) {
    let answer;
    const fake = await startFake((_number, response, { method }) => {
      if (method !== "POST") return response.end("data: 1\n\ndata: 2\n\n");
      answer = response;
      answer.removeHeader("X-Stream-Epoch");
      answer.flushHeaders();
      if (sent) answer.write(sent);
    });
    const store = memoryStore();
    const options = { method: "POST", id: "x", prefix: fake.prefix, key: "k", store, ...quick };
    const stream = resumable(`${fake.prefix}/chat`, options);
    await becomes(stream, "open");
    assert.equal(await restore("k", options), null);
    answer.destroy();
    await fail(stream);
    assert.equal(stream.state, "lost");
    assert.deepEqual(fake.requests, ["POST null"]);
    fake.stop();
  }
});

test("to stop an answer that was not recorded is to hang up, as its id may be an earlier one's", async () => {
  for (const isEarly of [false, true]) {
    let answer;
    const fake = await startFake((_number, response, { method }) => {
      response.removeHeader("X-Stream-Epoch");
      if (method === "DELETE") response.end();
      else answer = response;
    });
    const stream = resumable(`${fake.prefix}/chat`, { method: "POST", id: "x", prefix: fake.prefix, ...quick });
    await until(() => answer);
    if (isEarly) await stream.stop();
    const closed = once(answer, "close");
    answer.write("data: new\n\n");
    for await (const _ of stream) await stream.stop();
    assert.equal(stream.state, "stopped");
    await closed;
    // Until the answer comes, it may be one that is recorded.
    assert.deepEqual(fake.requests, ["POST null", ...(isEarly ? ["DELETE 0"] : [])]);
    fake.stop();
  }
});

test("an event without a name is the application's, whatever it says: the server is asked how it ended", async () => {
  const openai = await startServer({ terminal_event: "openai" });
  const run = (steps) => resumable(`${openai.url}/script`, { ...script(steps), ...quick });
  const { events, error } = await fail(run([send("data: 1\n\n"), ["raise", "x"]]));
  assert.equal(JSON.parse(events[1]).code, "producer_failed");
  assert.equal(error.code, "failed");
  const said = { code: "cancelled", message: "By the model." };
  const quoted = send(`data: ${JSON.stringify({ ...said, error: said })}\n\n`);
  assert.equal((await collect(run([quoted, send("data: 2\n\n")]))).length, 2);
  const stopped = run(FOREVER);
  await becomes(stopped, "open");
  await stopped.stop();
  assert.equal(JSON.parse((await collect(stopped)).at(-1).data).code, "cancelled");
  assert.equal(stopped.state, "stopped");
  await openai.stop();
});

test("with another form of the terminal event, the server is asked how the stream ended", async () => {
  const other = await startServer({ terminal_event: "ai-sdk" });
  const stream = resumable(`${other.url}/script`, { ...script([send("data: 1\n\n"), ["raise", "x"]]), ...quick });
  const { events, error } = await fail(stream);
  assert.equal(events.at(-1), "[DONE]");
  assert.equal(error.code, "failed");
  await other.stop();
});

test("a stream is read once", async () => {
  const stream = start([send("data: 1\n\n")]);
  await collect(stream);
  await assert.rejects(collect(stream.text()), TypeError);
});

test("what fetch would refuse is refused at once", () => {
  assert.throws(() => resumable("http://["), TypeError);
  assert.throws(() => resumable(`${server.url}/script`, { method: "GET", body: "x" }), TypeError);
  assert.throws(() => resumable(`${server.url}/script`, { headers: { "": "" } }), TypeError);
});
