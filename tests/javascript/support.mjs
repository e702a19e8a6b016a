// What tests in JavaScript share: an application of tests/support/apps under a real uvicorn, and bad lines to it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const SEED = Number(process.env.RESUMABLE_TEST_SEED ?? 1);

/** The module that a page of the documentation shows under a title; `change` may put a test's values into it. */
export async function fromDocs(page, title, change = (code) => code) {
  const text = await readFile(`${ROOT}/docs/${page}`, "utf8");
  const [, code] = text.split(`title="${title}"\n`)[1].match(/^([^]*?)```/);
  const folder = `${ROOT}/tests/javascript/node_modules/.docs`; // where packages are found
  await mkdir(folder, { recursive: true });
  const file = `${folder}/${process.pid}-${Math.random()}-${title}`;
  await writeFile(file, change(code));
  return import(file);
}

/** Run an application, "tests.support.apps.counting:app" say, on a free port: `{ url, port, stop() }`. */
export async function serve(app, env = {}) {
  const uvicorn = ["-m", "uvicorn", app, "--port", "0", "--no-access-log"];
  const server = spawn(process.env.PYTHON ?? "python3", uvicorn, {
    cwd: ROOT,
    env: { ...process.env, ...env },
    stdio: ["ignore", "ignore", "pipe"],
  });
  const kill = () => server.kill("SIGKILL");
  process.once("exit", kill);
  const output = [];
  const port = await new Promise((resolve, reject) => {
    createInterface({ input: server.stderr }).on("line", (line) => {
      output.push(line);
      const found = /running on http:\/\/127\.0\.0\.1:(\d+)/.exec(line);
      if (found) resolve(Number(found[1]));
    });
    server.once("error", reject);
    server.once("exit", () => reject(new Error(output.join("\n"))));
  });
  return {
    port,
    url: `http://127.0.0.1:${port}`,
    async stop() {
      process.off("exit", kill);
      server.kill("SIGTERM");
      await once(server, "exit");
    },
  };
}

/**
 * Open a line to the counting application that cuts connections; see tests/support/apps/counting.py.
 *
 * `count` is the endpoint behind it, and `replay` the replay route.
 */
export async function openLine(server, { cuts = 200, ...order } = {}) {
  const opened = await fetch(`${server.url}/lines`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ seed: SEED, cuts, ...order }),
  });
  return lineTo(server, { ...(await opened.json()), cuts });
}

function lineTo(server, { name, url, cuts }) {
  const query = `line=${encodeURIComponent(name)}`;
  const look = async () => (await fetch(`${server.url}/line?${query}`)).json();
  return {
    name,
    url,
    count: `${url}/count?${query}`,
    replay: `${url}/v1/stream/${encodeURIComponent(name)}`,
    look,

    /** All that was sent has come once, in order, over all the cuts; and it was made once. */
    async check(received) {
      const { texts, resets, ...seen } = await look();
      assert.deepEqual(received, texts);
      assert.deepEqual([seen.cuts, seen.runs], [cuts, 1]);
      if (cuts >= 100) assert.ok(resets > 0.3 * cuts && resets < 0.7 * cuts, "both FIN and RST");
    },
  };
}

/** A finished stream on a line that cuts once: when all of the log has come, but not yet the end of the response. */
export async function finishedLine(server) {
  const whole = await openLine(server, { cuts: 0 });
  const { byteLength } = await (await fetch(whole.count, { method: "POST" })).arrayBuffer();
  const at = `${byteLength.toString(16)}\r\n`.length + byteLength;
  const cutter = await openLine(server, { cuts: 1, least: at, most: at });
  const line = lineTo(server, { name: whole.name, url: cutter.url, cuts: 0 });
  return {
    ...line,
    async check(received) {
      await line.check(received);
      assert.equal((await cutter.look()).cuts, 1);
    },
  };
}

/** How a line's stream can end otherwise, and the type and the code of its last event then. */
export const ENDINGS = { fail: ["error", "producer_failed"], stop: ["cancelled", "cancelled"] };
