// The npm package `eventsource-client`.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { createEventSource } from "eventsource-client";

import { ENDINGS, finishedLine, openLine, serve } from "../support.mjs";

let server;
before(async () => (server = await serve("tests.support.apps.counting:app")));
after(() => server.stop());

/** Listen until it closes: the texts, and what was said of the end. */
function listen(url, method = "GET") {
  return new Promise((resolve) => {
    const texts = [];
    const endings = [];
    const source = createEventSource({
      url,
      method,
      onMessage({ event, data }) {
        if (event) endings.push([event, JSON.parse(data).code]);
        else texts.push(data);
      },
      // After a 204 it closes, and schedules nothing more.
      onDisconnect: () => setImmediate(() => source.readyState === "closed" && resolve({ texts, endings })),
    });
  });
}

for (const [method, cuts] of [
  ["GET", 200],
  ["POST", 50],
]) {
  test(`eventsource-client gets all over ${cuts} cuts, and closes: ${method}`, { timeout: 200_000 }, async () => {
    const line = await openLine(server, { cuts, heads: true });
    const { texts, endings } = await listen(line.count, method);
    await line.check(texts);
    assert.deepEqual(endings, []);
  });
}

test("eventsource-client is told of a failure", { timeout: 200_000 }, async () => {
  const line = await openLine(server, { cuts: 5, end: "fail" });
  const { texts, endings } = await listen(line.count, "POST");
  await line.check(texts);
  assert.deepEqual(endings, [ENDINGS.fail]);
});

test("eventsource-client closes when only the end was cut off", { timeout: 200_000 }, async () => {
  const line = await finishedLine(server);
  const { texts } = await listen(line.replay);
  await line.check(texts);
});

test("eventsource-client goes on asking after a stop, until it is closed", { timeout: 200_000 }, async () => {
  const line = await openLine(server, { cuts: 5, end: "stop" });
  const texts = [];
  const ending = await new Promise((resolve) => {
    let told;
    let asked = 0;
    const source = createEventSource({
      url: line.count,
      onMessage({ event, data }) {
        if (event) told = [event, JSON.parse(data).code];
        else texts.push(data);
      },
      onScheduleReconnect() {
        // The first time for the end of the stream, the second for the 404 after it.
        if (told && ++asked === 2) {
          source.close();
          resolve(told);
        }
      },
    });
  });
  await line.check(texts);
  assert.deepEqual(ending, ENDINGS.stop);
});

test("eventsource-client's iterator loses what was not taken when the stream ended", { timeout: 200_000 }, async () => {
  const line = await finishedLine(server);
  const source = createEventSource(line.replay);
  const texts = [];
  for await (const { data } of source) {
    texts.push(data);
    while (source.readyState !== "closed") await new Promise(setImmediate);
  }
  assert.equal(texts.length, 1);
  assert.ok((await line.look()).texts.length > 1);
});
