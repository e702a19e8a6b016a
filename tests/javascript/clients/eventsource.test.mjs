// The npm package `eventsource`: the browser's EventSource, for Node.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { EventSource } from "eventsource";

import { ENDINGS, finishedLine, openLine, serve } from "../support.mjs";

let server;
before(async () => (server = await serve("tests.support.apps.counting:app")));
after(() => server.stop());

/** Listen until it closes: the texts, and what was said of the end. */
function listen(url) {
  return new Promise((resolve) => {
    const texts = [];
    const endings = [];
    const source = new EventSource(url);
    source.addEventListener("message", (event) => texts.push(event.data));
    source.addEventListener("cancelled", (event) => endings.push([event.type, JSON.parse(event.data).code]));
    source.addEventListener("error", (event) => {
      if (event.data) endings.push([event.type, JSON.parse(event.data).code]);
      else if (source.readyState === EventSource.CLOSED) resolve({ texts, endings });
    });
  });
}

test("eventsource gets all over 200 cuts, and closes", { timeout: 200_000 }, async () => {
  const line = await openLine(server, { heads: true });
  const { texts, endings } = await listen(line.count);
  await line.check(texts);
  assert.deepEqual(endings, []);
});

for (const [end, last] of Object.entries(ENDINGS)) {
  test(`eventsource is told of a ${end}`, { timeout: 200_000 }, async () => {
    const line = await openLine(server, { cuts: 5, end });
    const { texts, endings } = await listen(line.count);
    await line.check(texts);
    assert.deepEqual(endings, [last]);
  });
}

test("eventsource closes when only the end was cut off", { timeout: 200_000 }, async () => {
  const line = await finishedLine(server);
  const { texts } = await listen(line.replay);
  await line.check(texts);
});
