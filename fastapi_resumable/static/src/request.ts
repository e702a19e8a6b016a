/** Requests to the server, and the errors that it answers with. */

import type { RequestOptions } from "../resumable.js";
import type { Place } from "./place.js";
import { clipDelay } from "./time.js";

/** The path of the router, if it served this module: its URL has a hash then. */
export const [, PREFIX = "/v1"] = /^(.*)\/resumable\.\w+\.js$/.exec(import.meta.url) ?? [];

/** Refusals that hold for now; each other one below 500 is final. */
export const NOT_NOW = [408, 425, 429];

interface About {
  status?: number;
  code?: string;
  detail?: unknown;
  retryAfter?: number;
}

export class ResumableError extends Error {
  name = "ResumableError";
  status = 0;
  code = "";
  declare detail?: unknown;
  declare retryAfter?: number;

  constructor(message?: string, about?: About) {
    super(message);
    Object.assign(this, about);
  }
}

/** Write a text as the bytes of its UTF-8, which is how the server reads a header. */
export function encodeHeader(value: string) {
  return String.fromCharCode(...new TextEncoder().encode(value));
}

export function originOf(url: string) {
  // Outside of browsers a relative URL has no origin; only a `fetch` of the caller's own can ask for it.
  return new URL(url, globalThis.location?.href ?? "http://localhost").origin;
}

export function replayUrl({ id, url }: Place, { prefix = PREFIX }: RequestOptions) {
  return url ?? `${prefix}/stream?conv_id=${encodeURIComponent(id)}`;
}

/** Get a stream from its place on (GET), ask how it is (HEAD), or stop it (DELETE). */
export async function ask(
  method: "GET" | "HEAD" | "DELETE",
  place: Place,
  options: RequestOptions,
  signal: AbortSignal | null = null,
) {
  const { origin, epoch = "", offset = "", eventId } = place;
  const url = replayUrl(place, options);
  // The server chooses this URL. Only the origin of the first request gets the caller's headers and cookies.
  const isForeign = origin && originOf(url) !== origin;
  const headers = new Headers(isForeign ? {} : options.headers);
  if (eventId === `${epoch}-${offset}`) headers.set("Last-Event-ID", eventId);
  const query = new URLSearchParams({ epoch, from: offset as string });
  const init = { ...options, method, headers, body: null, signal, keepalive: method === "DELETE" };
  if (isForeign) init.credentials = "omit";
  return send(url + (url.includes("?") ? "&" : "?") + query, init).catch((refusal: ResumableError) => {
    if (isForeign && [401, 403, 404].includes(refusal.status)) {
      refusal.message += ` (${originOf(url)} got no credentials: they are for ${origin})`;
    }
    throw refusal;
  });
}

/** Send a request; throws a `ResumableError` for any answer but 2xx. */
export async function send(url: string, { fetch = globalThis.fetch, ...init }: RequestInit & RequestOptions) {
  const response = await fetch(url, init);
  if (response.ok) return response;
  const { status } = response;
  const { detail } = Object(await response.json().catch(() => 0));
  const { message = `${status} ${JSON.stringify(detail) ?? ""}`, code = "" } = Object(detail);
  const retryAfter = readRetryAfter(response.headers);
  throw new ResumableError(message, { status, code, retryAfter, detail });
}

/** Milliseconds, from a number of seconds or a date. A date counts from the answer's own, as clocks may be wrong. */
function readRetryAfter(headers: Headers) {
  // `null`, if there is none, is neither.
  const text = headers.get("Retry-After") as string;
  const now = Date.parse(headers.get("Date") as string) || Date.now();
  return clipDelay(/^\d+$/.test(text) ? +text * 1000 : Date.parse(text) - now);
}
