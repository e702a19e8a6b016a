// Checked by tsc, never run: what the types allow, and what they do not.

import {
  ResumableError,
  lookup,
  restore,
  resumable,
  resume,
  stop,
  type ResumableStream,
  type StreamEvent,
  type StreamItem,
  type StreamState,
} from "../../../fastapi_resumable/static/resumable.js";

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <_ extends true>(): void => undefined;

export async function allowed(store: Storage): Promise<void> {
  const signal = AbortSignal.timeout(1000);
  const stream = resumable("/chat", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ prompt: "?" }),
    credentials: "include",
    signal,
    key: "chat",
    store,
    silence: 60_000,
  });
  stream.addEventListener("statechange", () => same<Equal<typeof stream.state, StreamState>>());
  for await (const event of stream) same<Equal<typeof event, StreamEvent>>();
  for await (const piece of stream.text()) same<Equal<typeof piece, string>>();
  for await (const bytes of stream.bytes()) bytes.byteLength.toFixed();
  stream.response?.headers.get("X-Turn");
  await stream.stop();
  stream.detach();

  const again = await restore<{ text: string }>("chat");
  if (again) same<Equal<typeof again, ResumableStream<{ text: string }>>>();
  again?.save({ text: again.saved?.text ?? "" });
  resume("id", { from: stream.offset, epoch: stream.epoch ?? "" });
  resumable(new URL("http://localhost/x"), { body: new FormData(), fetch: (input, init) => fetch(input, init) });
  await stop("id", { epoch: "e" });
  const items = await lookup(new Set(["a"]), { credentials: "include" });
  same<Equal<typeof items, StreamItem[]>>();
  if (stream.error instanceof ResumableError) stream.error.code.trim();
}

export function refused(): void {
  // @ts-expect-error a body that can be sent only once
  resumable("/chat", { body: new ReadableStream() });
  // @ts-expect-error a Request is such a body, too
  resumable(new Request("/chat"));
  // @ts-expect-error the state is for reading
  resumable("/chat").state = "done";
  // @ts-expect-error not the type that was promised
  resume<string>("id").save(1);
  // @ts-expect-error stop is by id
  void stop();
}
