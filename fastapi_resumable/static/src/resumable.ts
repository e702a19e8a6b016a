/** What the module offers. Documentation for its users: ../resumable.d.ts. */

import type * as api from "../resumable.js";
import { type Place, type Repetition, recall } from "./place.js";
import { ask, encodeHeader, originOf, replayUrl } from "./request.js";
import { Stream } from "./stream.js";

export { ResumableError } from "./request.js";
export { lookup } from "./lookup.js";

/** Headers that a request has to have again after a reload; credentials are not among them. */
const REPEATED = /^content-type|^x-conversation|^idempotency/;

export function resumable<Saved>(url: string | URL, options: api.StartOptions = {}) {
  const headers = new Headers(options.headers);
  const { id = headers.get("X-Conversation-Id") ?? randomId(), method, body } = options;
  headers.set("X-Conversation-Id", encodeHeader(id));
  if (!headers.has("Idempotency-Key")) headers.set("Idempotency-Key", randomId());
  const again: Repetition | false = typeof (body ?? "") === "string" && {
    method,
    body: body as string | undefined,
    headers: [...headers].filter(([name]) => REPEATED.test(name)),
  };
  // A Request checks what fetch would not send, and knows the whole URL.
  const start = new Request(url, options as RequestInit).url;
  const place = { id, start, again, origin: originOf(start), offset: 0 };
  return new Stream<Saved>(place, { ...options, headers });
}

export function resume<Saved>(id: string, options: api.ResumeOptions = {}) {
  const { epoch, from: offset = 0 } = options;
  return new Stream<Saved>({ id, epoch, offset, origin: originOf(replayUrl({ id }, options)) }, options);
}

export async function restore<Saved>(key: string, options: api.FollowOptions = {}) {
  const place: Place | null = await recall(key, options);
  if (!place) return null;
  const { again } = place;
  const headers = new Headers(options.headers);
  if (again) again.headers.forEach(([name, value]) => headers.set(name, value));
  return new Stream<Saved>(place, { ...options, ...again, headers, key });
}

export async function stop(id: string, options: api.RequestOptions & { epoch?: string } = {}) {
  await ask("DELETE", { id, epoch: options.epoch }, options, options.signal);
}

function randomId() {
  return crypto.getRandomValues(new Uint32Array(4)).join("");
}

// The module keeps what its types promise.
({ resumable, resume, restore, stop }) satisfies Pick<typeof api, "resumable" | "resume" | "restore" | "stop">;
