// The npm package `openai`: it does not resume by itself, so the caller asks again.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout } from "node:timers/promises";

import OpenAI from "openai";

import { ENDINGS, openLine, serve } from "../support.mjs";

const REQUEST = { model: "m", messages: [{ role: "user", content: "Count" }] };

let server;
before(async () => (server = await serve("tests.support.apps.counting:app")));
after(() => server.stop());

/** The SDK at the end of a line; without retries of its own, which are slow, and only for what was not answered. */
const sdk = (line) => new OpenAI({ apiKey: "none", baseURL: `${line.url}/v1`, maxRetries: 0 });

async function* chunks(client, key, request, pause = 1000) {
  const headers = { "X-Conversation-Id": key, "Idempotency-Key": key };
  for (let seen = 0; ; await setTimeout(pause)) {
    try {
      let number = 0;
      for await (const chunk of await client.chat.completions.create({ ...request, stream: true }, { headers })) {
        if (number++ === seen) {
          seen++;
          yield chunk;
        }
      }
      return;
    } catch (error) {
      if (!(error instanceof OpenAI.APIConnectionError || error instanceof TypeError)) throw error;
    }
  }
}

// Each time it reads from the start: what 200 cuts cost grows with their square.
test("openai gets all over 50 cuts", { timeout: 200_000 }, async () => {
  const line = await openLine(server, { cuts: 50, most: 50_000, heads: true });
  const texts = [];
  for await (const chunk of chunks(sdk(line), line.name, REQUEST, 0)) texts.push(chunk.choices[0].delta.content);
  await line.check(texts);
});

for (const [end, [, code]] of Object.entries(ENDINGS)) {
  test(`openai throws on a ${end}`, { timeout: 200_000 }, async () => {
    const line = await openLine(server, { cuts: 5, end, most: 5000 });
    const texts = [];
    await assert.rejects(
      async () => {
        for await (const chunk of chunks(sdk(line), line.name, REQUEST, 0)) texts.push(chunk.choices[0].delta.content);
      },
      (error) =>
        error instanceof OpenAI.APIError && !(error instanceof OpenAI.APIConnectionError) && error.code === code,
    );
    await line.check(texts);
  });
}
