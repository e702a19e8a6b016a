// HttpAgent of @ag-ui/client: as it is, and as a resumable agent, through a proxy that cuts.

import assert from "node:assert/strict";
import { after, before, mock, test } from "node:test";

import { HttpAgent } from "@ag-ui/client";

import { resumableAgent } from "../../../fastapi_resumable/static/ag-ui.js";
import { fromDocs } from "../support.mjs";
import { startProxy } from "../ai-sdk/backend.mjs";
import { AT_ONCE, seeded, startAgents, WHOLE } from "./backend.mjs";

const MODULE = "../../../fastapi_resumable/static/ag-ui.js";
const timeout = 200_000;

let backend;
before(async () => (backend = await startAgents()), { timeout });
after(() => backend.stop());
mock.method(console, "error", () => {}); // where the agent reports what fails

let count = 0;
const unique = () => `thread ${process.pid}/${++count}`;

/** An agent of a thread, and what it hears. */
function open(threadId, url = backend.url) {
  const Agent = resumableAgent(HttpAgent, { prefix: `${url}/v1`, minDelay: 1 });
  return new Agent({ url: `${url}/agent`, threadId });
}
function listener() {
  const heard = { types: [], text: "", errors: [] };
  let look = () => {};
  return {
    heard,
    onEvent: ({ event }) => {
      heard.types.push(event.type);
      heard.text += event.delta ?? "";
      look();
    },
    onRunErrorEvent: ({ event }) => void heard.errors.push(event),
    onRunFailed: ({ error }) => void heard.errors.push(error),
    hears: (text) => new Promise((resolve) => (look = () => heard.text.startsWith(text) && resolve())()),
  };
}

function assertWhole({ heard }) {
  assert.equal(heard.text, WHOLE);
  assert.deepEqual(
    heard.types.filter((type) => type !== "TEXT_MESSAGE_CONTENT"),
    ["RUN_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_END", "RUN_FINISHED"],
  );
}

test("a run comes whole over many cuts, each event once", { timeout }, async () => {
  const random = seeded();
  const proxy = await startProxy(backend.port, () => 300 + 1200 * random());
  const id = unique();
  const agent = open(id, proxy.url);
  const listens = listener();
  const ran = agent.runAgent({}, listens);
  await listens.hears(AT_ONCE);
  for (let word = 0; word < 37; word++) await backend.write(id, 1);
  const { newMessages } = await ran;
  assertWhole(listens);
  assert.equal(newMessages[0].content, WHOLE);
  assert.ok(proxy.cuts > 3, `${proxy.cuts} cuts`);
  assert.deepEqual(await backend.outcomes(id), ["whole"]);
  await proxy.stop();
});

test("another page joins the run from its start, live and once it has ended", { timeout }, async () => {
  const id = unique();
  const first = open(id);
  const gone = listener();
  const ran = first.runAgent({}, gone);
  await gone.hears(AT_ONCE);
  await first.detachActiveRun(); // what leaving the page does
  await ran;
  const listens = listener();
  const joined = open(id).connectAgent({}, listens);
  await listens.hears(AT_ONCE);
  await backend.write(id);
  const { newMessages } = await joined;
  assertWhole(listens);
  assert.equal(newMessages[0].content, WHOLE);
  const late = listener();
  await open(id).clone().connectAgent({}, late);
  assertWhole(late);
  assert.deepEqual(await backend.outcomes(id), ["whole"]);
});

test("a run that fails ends with RUN_ERROR, and nothing else", { timeout }, async () => {
  const id = unique();
  const listens = listener();
  const ran = open(id).runAgent({}, listens);
  await listens.hears(AT_ONCE);
  await backend.fail(id);
  await ran.catch(() => {});
  assert.equal(listens.heard.types.at(-1), "RUN_ERROR");
  assert.deepEqual(listens.heard.errors.map(({ code }) => code), ["producer_failed"]);
});

test("HttpAgent as it is hears of it, too", { timeout }, async () => {
  const id = unique();
  const listens = listener();
  const ran = new HttpAgent({ url: `${backend.url}/agent`, threadId: id }).runAgent({}, listens);
  await listens.hears(AT_ONCE);
  await backend.fail(id);
  await ran.catch(() => {});
  assert.deepEqual(listens.heard.errors.map(({ code }) => code), ["producer_failed"]);
});

test("abortRun stops the run at the server", { timeout }, async () => {
  const id = unique();
  const agent = open(id);
  const listens = listener();
  const ran = agent.runAgent({}, listens);
  await listens.hears(AT_ONCE);
  agent.abortRun();
  await ran.catch(() => {});
  assert.deepEqual(await backend.outcomes(id), ["abandoned"]);
});

test("what the server refuses fails the run", { timeout }, async () => {
  const listens = listener();
  await open("x".repeat(600)).runAgent({}, listens).catch(() => {});
  assert.equal(listens.heard.errors[0].code, "invalid_stream_id");
  assert.equal(listens.heard.errors[0].status, 400);
});

test("the page of the documentation asks, joins and stops", { timeout }, async () => {
  const change = (code) =>
    code
      .replace("'fastapi-resumable/ag-ui'", JSON.stringify(new URL(import.meta.resolve(MODULE)).href))
      .replace("resumableAgent(HttpAgent)", `resumableAgent(HttpAgent, { prefix: "${backend.url}/v1" })`)
      .replace("'/agent'", `'${backend.url}/agent'`);
  const { openThread } = await fromDocs("how-to/ag-ui.md", "agent.mjs", change);
  const id = unique();
  let text = "";
  let look;
  const spoken = new Promise((resolve) => (look = () => text === AT_ONCE && resolve()));
  const thread = openThread(id, (delta) => look((text += delta)));
  const asked = thread.ask("hello");
  await spoken;
  await thread.leave();
  await asked;
  let joined = "";
  const again = openThread(id, (delta) => (joined += delta));
  const followed = again.join();
  await backend.write(id);
  await followed;
  assert.equal(joined, WHOLE);
  const third = openThread(id, () => third.stop());
  await third.ask("again").catch(() => {});
  assert.deepEqual(await backend.outcomes(id), ["whole", "abandoned"]);
});
