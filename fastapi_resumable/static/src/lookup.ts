/** Lookup: calls in one tick share a request. */

import type { RequestOptions, StreamItem } from "../resumable.js";
import { PREFIX, send } from "./request.js";

/** What one request may ask for. */
const MOST_IDS = 1000;

interface Batch {
  ids: Set<string>;
  items: Promise<StreamItem[]>;
}

const batches = new Map<RequestOptions | undefined, Batch>();

export async function lookup(ids: Iterable<string>, options?: RequestOptions): Promise<StreamItem[]> {
  const wanted = [...ids];
  const batch = batches.get(options) ?? begin(options);
  wanted.forEach((id) => batch.ids.add(id));
  const isWanted = (item: StreamItem) => wanted.some((id) => `${item.conversation_id}::`.startsWith(`${id}::`));
  return (await batch.items).filter(isWanted);
}

function begin(options?: RequestOptions): Batch {
  const batch = { ids: new Set<string>() } as Batch;
  batches.set(options, batch);
  batch.items = new Promise((resolve) => setTimeout(resolve)).then(() => {
    batches.delete(options);
    return request([...batch.ids], options);
  });
  return batch;
}

async function request(ids: string[], options?: RequestOptions) {
  const items = new Map<string, StreamItem>(); // by id, as an item may be asked for in two requests
  while (ids.length) {
    const body = JSON.stringify({ conversation_ids: ids.splice(0, MOST_IDS) });
    const url = `${options?.prefix ?? PREFIX}/streams/lookup`;
    const found: StreamItem[] = await (await send(url, { ...options, method: "POST", body })).json();
    found.forEach((item) => items.set(item.conversation_id, item));
  }
  return [...items.values()];
}
