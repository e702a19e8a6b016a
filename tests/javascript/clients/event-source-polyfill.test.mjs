// The npm package `event-source-polyfill`, which names the last event in the query: a header would need a preflight.

import assert from "node:assert/strict";
import { after, before, mock, test } from "node:test";

import polyfill from "event-source-polyfill";

import { openLine, serve } from "../support.mjs";

let server;
before(async () => (server = await serve("tests.support.apps.counting:app")));
after(() => server.stop());
mock.method(console, "error", () => {}); // where it says what it makes of 204

/** Listen until all that the line's stream has sent is there, and the polyfill has come back for more. */
function listen(line, url) {
  return new Promise((resolve) => {
    const texts = [];
    const source = new polyfill.EventSourcePolyfill(url, { lastEventIdQueryParameterName: "lastEventId" });
    source.onmessage = (event) => texts.push(event.data);
    source.onerror = async () => {
      const seen = await line.look();
      if (seen.cuts < 5 || texts.length < seen.texts.length) return;
      source.close();
      resolve(texts);
    };
  });
}

for (const route of ["count", "replay"]) {
  test(`event-source-polyfill gets all over 5 cuts: ${route}`, { timeout: 200_000 }, async () => {
    const line = await openLine(server, { cuts: 5 });
    // Replays never start a stream.
    if (route === "replay") await (await fetch(line.count.replace(line.url, server.url))).body.cancel();
    await line.check(await listen(line, line[route]));
  });
}
