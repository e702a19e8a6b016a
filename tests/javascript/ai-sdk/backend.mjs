// The backend in tests/support/apps/ai_sdk.py under a real uvicorn, and a TCP proxy in front of it that cuts.

import { once } from "node:events";
import net from "node:net";

import { serve } from "../support.mjs";

/** Start the backend on a free port. */
export async function startBackend(options = {}) {
  const server = await serve("tests.support.apps.ai_sdk:app", { RESUMABLE_TEST_OPTIONS: JSON.stringify(options) });
  const tell = async (method, verb, chat, more) => {
    const response = await fetch(`${server.url}/${verb}?${new URLSearchParams({ chat, ...more })}`, { method });
    if (!response.ok) throw new Error(await response.text());
    return response.json();
  };
  return {
    ...server,
    write: (chat, words) => tell("POST", "write", chat, words && { words }),
    fail: (chat) => tell("POST", "fail", chat),
    journal: (chat) => tell("GET", "journal", chat),
    outcomes: (chat) => tell("GET", "outcomes", chat),
  };
}

/** A TCP proxy. `after()` says after how many bytes from the server a connection is cut; by default never. */
export async function startProxy(port, after = () => Infinity) {
  const sockets = new Set();
  const proxy = { cuts: 0 };
  const server = net.createServer((client) => {
    const upstream = net.connect(port, "127.0.0.1");
    let left = after();
    const cut = () => {
      client.destroy();
      upstream.destroy();
      sockets.delete(cut);
    };
    sockets.add(cut);
    upstream.on("data", (data) => {
      if (data.length < left) {
        left -= data.length;
        client.write(data);
      } else {
        proxy.cuts += 1;
        sockets.delete(cut);
        client.end(data.subarray(0, left), cut);
      }
    });
    client.pipe(upstream);
    upstream.on("end", () => client.end());
    for (const socket of [client, upstream]) socket.on("error", cut).on("close", cut);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  proxy.url = `http://127.0.0.1:${server.address().port}`;
  proxy.cut = () => [...sockets].forEach((cut) => cut());
  proxy.stop = async () => {
    server.close();
    proxy.cut();
    await once(server, "close");
  };
  return proxy;
}
