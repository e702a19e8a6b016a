// Credentials go to the origin of the first request, and to no other.

import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import { after, before, test } from "node:test";

import { restore, resumable } from "../../../fastapi_resumable/static/resumable.js";
import { collect, memoryStore } from "./support.mjs";

const SECRETS = { Authorization: "Bearer secret", "X-Api-Key": "secret", Cookie: "session=secret" };

/** A server that remembers what it is asked, and answers as it is told. */
async function startHost(answer) {
  const host = { requests: [], answer };
  const server = http.createServer((request, response) => {
    host.requests.push(request);
    host.answer(request, response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  host.url = `http://127.0.0.1:${server.address().port}`;
  host.stop = () => server.closeAllConnections() ?? server.close();
  return host;
}

let home;
let other;
const stolen = () => other.requests.filter(({ headers }) => /secret/.test(JSON.stringify(headers)));
before(async () => {
  other = await startHost((request, response) => {
    response.setHeader("X-Stream-Epoch", "mfrggzdfmztwq2lk");
    response.setHeader("X-Stream-Status", "completed");
    response.setHeader("Content-Location", "/v1/stream/x");
    response.end(request.method === "HEAD" ? "" : "data: 2\n\n");
  });
  home = await startHost((request, response) => {
    response.setHeader("X-Stream-Epoch", "mfrggzdfmztwq2lk");
    response.setHeader("Content-Location", `${other.url}/v1/stream/x`);
    // Cut, so that the client comes back.
    response.write("data: 1\n\n", () => setImmediate(() => response.destroy()));
  });
});
after(() => [home, other].forEach((host) => host.stop()));

const options = () => ({ method: "POST", headers: SECRETS, credentials: "include", minDelay: 1, prefix: home.url });

test("a Content-Location of another origin is followed without them", async () => {
  other.requests.length = 0;
  const modes = [];
  const spy = (url, init) => {
    if (url.startsWith(other.url)) modes.push(init.credentials);
    return fetch(url, init);
  };
  const events = await collect(resumable(`${home.url}/chat`, { ...options(), fetch: spy }));
  assert.deepEqual(events.map(({ data }) => data), ["1", "2"]);
  assert.equal(home.requests.at(-1).headers.authorization, "Bearer secret");
  assert.deepEqual(other.requests.map(({ method }) => method), ["GET", "HEAD"]);
  assert.deepEqual(stolen(), []);
  assert.deepEqual(modes, ["omit", "omit"]);
});

test("nor does a stop take them there", async () => {
  other.requests.length = 0;
  const stream = resumable(`${home.url}/chat`, options());
  for await (const _ of stream) {
    await stream.stop();
    break;
  }
  assert.equal(other.requests[0].method, "DELETE");
  assert.deepEqual(stolen(), []);
});

test("nor a reload", async () => {
  other.requests.length = 0;
  const kept = { ...options(), key: "k", store: memoryStore() };
  for await (const _ of resumable(`${home.url}/chat`, kept)) break;
  await collect(await restore("k", kept));
  assert.ok(other.requests.length > 0);
  assert.deepEqual(stolen(), []);
});

test("a redirect takes none along", async () => {
  other.requests.length = 0;
  const door = await startHost((_, response) => response.writeHead(307, { Location: `${other.url}/chat` }).end());
  const { "X-Api-Key": _, ...headers } = SECRETS; // to a redirect, fetch itself sends all headers but credentials
  await collect(resumable(`${door.url}/chat`, { ...options(), headers }));
  assert.ok(other.requests.length > 0);
  assert.deepEqual(stolen(), []);
  door.stop();
});

test("what is not to be had without them is lost, with an error that says so", async () => {
  const answer = other.answer;
  other.answer = (_, response) => response.writeHead(401).end();
  const stream = resumable(`${home.url}/chat`, options());
  await assert.rejects(collect(stream), (error) => error.status === 401 && error.message.includes("got no credentials"));
  assert.equal(stream.state, "lost");
  other.answer = answer;
});
