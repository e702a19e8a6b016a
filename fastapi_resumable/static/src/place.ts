/** A place in a stream, and how a page keeps it for the time after a reload. */

import type { FollowOptions } from "../resumable.js";

/** The part of a request that is sent again after a reload: no credentials. */
export interface Repetition {
  method: string | undefined;
  body: string | undefined;
  headers: [string, string][];
}

/** Everything that a page needs in order to go on with a stream. */
export interface Place {
  id: string;
  /** URL of the request that starts it, until its response has come. */
  start?: string | undefined;
  /** How that request is repeated after a reload; `false` if it cannot be. */
  again?: Repetition | false | undefined;
  /** URL of its replay, once the server has named it. */
  url?: string | undefined;
  /** Origin of the first request: the only one that gets credentials. */
  origin?: string | undefined;
  epoch?: string | undefined;
  /** How many bytes of it have been handed out. */
  offset?: number;
  /** The id of the last event that was handed out. */
  eventId?: string | undefined;
  saved?: unknown;
}

const PREFIX = "resumable:";
const storeOf = ({ store }: FollowOptions) => store ?? sessionStorage;

/** The place that is kept under a key. A store that is forbidden holds none. */
export async function recall(key: string, options: FollowOptions): Promise<Place | null> {
  try {
    return JSON.parse((await storeOf(options).getItem(PREFIX + key)) as string);
  } catch {
    return null;
  }
}

/** Keep a place under the stream's key, or nothing (`null`). A store may be full or forbidden: then nothing is kept. */
export async function keep(place: Place | null, options: FollowOptions) {
  if (!options.key) return;
  const name = PREFIX + options.key;
  try {
    await (place ? storeOf(options).setItem(name, JSON.stringify(place)) : storeOf(options).removeItem(name));
  } catch {}
}
