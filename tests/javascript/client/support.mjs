// The scripted application (tests/support/apps/scripted.py) under a real uvicorn, and a TCP proxy that spoils the line.

import { spawn } from "node:child_process";
import { once } from "node:events";
import net from "node:net";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../..", import.meta.url));

/** Start the application, with these arguments of `Resumable(...)`, on a free port. */
export async function startServer(options = {}) {
  const command = ["-m", "uvicorn", "tests.support.apps.scripted:app", "--port", "0", "--no-access-log"];
  const server = spawn(process.env.PYTHON ?? "python3", command, {
    cwd: ROOT,
    env: { ...process.env, RESUMABLE_TEST_OPTIONS: JSON.stringify(options) },
    stdio: ["ignore", "ignore", "pipe"],
  });
  const orphaned = () => server.kill("SIGKILL");
  process.once("exit", orphaned);
  const output = [];
  const port = await new Promise((resolve, reject) => {
    createInterface({ input: server.stderr }).on("line", (line) => {
      output.push(line);
      const running = /running on http:\/\/127\.0\.0\.1:(\d+)/.exec(line);
      if (running) resolve(Number(running[1]));
    });
    server.once("exit", () => reject(new Error(output.join("\n"))));
    server.once("error", reject);
  });
  const url = `http://127.0.0.1:${port}`;
  return {
    port,
    url,
    /** Let the script go on that waits at this gate. */
    open: (gate) => fetch(`${url}/gate/${gate}`, { method: "POST" }),
    /** What has happened, at once or when `entry` has. */
    async journal(entry, count = 1) {
      const query = entry ? `?${new URLSearchParams({ until: entry, count })}` : "";
      return (await fetch(`${url}/events${query}`)).json();
    },
    async stop() {
      process.off("exit", orphaned);
      server.kill("SIGTERM");
      const late = setTimeout(() => server.kill("SIGKILL"), 10_000);
      await once(server, "exit");
      clearTimeout(late);
    },
  };
}

/** Numbers from 0 to 1 that are the same each time. */
export function seeded(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * A line to `port`. `allow()` says for each connection after how many bytes from the server it breaks;
 * `requests` are those that went through.
 */
export async function startLine(port, allow = () => Infinity) {
  const sockets = new Set();
  const connections = new Set();
  const line = { allow, refuses: false, breaks: 0, requests: [] };
  const server = net.createServer((client) => {
    if (line.refuses) return client.destroy();
    const upstream = net.connect(port, "127.0.0.1");
    const connection = { left: line.allow() };
    connections.add(connection);
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => {
        sockets.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    client.on("data", (data) => {
      const heads = /^(GET|HEAD|POST|DELETE) (\S+) HTTP\/1.1\r\n((?:.+\r\n)*)/gm;
      for (const [, method, url, head] of data.toString("latin1").matchAll(heads)) {
        line.requests.push({ method, url, lastEventId: /^last-event-id: (.*)\r$/im.exec(head)?.[1], head });
      }
      upstream.write(data);
    });
    upstream.on("data", (data) => {
      const passed = data.subarray(0, connection.left);
      if (connection.left <= 0) return;
      connection.left -= data.length;
      if (connection.left > 0) client.write(passed);
      else {
        line.breaks += 1;
        client.write(passed, () => client.destroy());
      }
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  line.url = `http://127.0.0.1:${server.address().port}`;
  /** Let what is open now stay open, but without a byte from the server. */
  line.mute = () => connections.forEach((connection) => (connection.left = 0));
  /** Break what is open now. */
  line.cut = () => sockets.forEach((socket) => socket.destroy());
  line.stop = async () => {
    line.cut();
    server.close();
    await once(server, "close");
  };
  return line;
}

/** The request for a script. */
export function script(steps, more = {}) {
  const { id, key, ...rest } = more;
  return {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      ...(id === undefined ? {} : { "X-Conversation-Id": id }),
      ...(key === undefined ? {} : { "Idempotency-Key": key }),
    },
    body: JSON.stringify({ steps, ...rest }),
  };
}

/** The step that sends this text, or these bytes. */
export const send = (data) => ["send", Buffer.from(data).toString("hex")];

export async function collect(iterable) {
  const all = [];
  for await (const one of iterable) all.push(one);
  return all;
}

/** The states that a stream has been in, as a list that grows. */
export function states(stream) {
  const seen = [stream.state];
  stream.addEventListener("statechange", () => seen.push(stream.state));
  return seen;
}

/** Wait for a state. */
export async function becomes(stream, state) {
  while (stream.state !== state) await once(stream, "statechange");
}

/** A `Storage`, as plain as can be. */
export function memoryStore() {
  const items = new Map();
  return {
    items,
    getItem: (name) => items.get(name) ?? null,
    setItem: (name, value) => void items.set(name, value),
    removeItem: (name) => void items.delete(name),
  };
}

/** A clock that stands still; `pauses` are those that were asked for, and `pass` lets time go by. */
export class Clock {
  pauses = [];
  #now = 0;
  #timers = new Map();
  #last = 0;

  performance = { now: () => this.#now };

  setTimeout = (callback, ms) => {
    this.pauses.push(ms);
    this.#timers.set(++this.#last, { at: this.#now + ms, callback });
    return this.#last;
  };

  clearTimeout = (timer) => this.#timers.delete(timer);

  pass(ms) {
    this.#now += ms;
    for (const [timer, { at, callback }] of this.#timers) {
      if (at > this.#now) continue;
      this.#timers.delete(timer);
      callback();
    }
  }
}

/** Wait until a condition holds; the test's own timeout bounds it. */
export async function until(condition) {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}
