/** Server-sent events out of bytes, each with the place where it ends; and the one by which the server ends a stream. */

import type { StreamEvent } from "../resumable.js";
import { ResumableError } from "./request.js";

const LF = 10;
const CR = 13;

export interface Decoded {
  event: StreamEvent;
  /** How many bytes of the chunk are over when the event is. */
  end: number;
}

export class EventDecoder {
  /** The last `retry:`, in milliseconds. */
  retry = 0;
  #text: TextDecoder;
  #line: number[] = [];
  #last = 0;
  #fields: Record<string, string> = {};

  /** `isStart`: whether the first byte is the stream's own first, so that it may be a byte order mark. */
  constructor(isStart: boolean) {
    this.#text = new TextDecoder("utf-8", { ignoreBOM: !isStart });
  }

  /** The events that end in this chunk. One that does not is kept for the next. */
  *feed(chunk: Uint8Array): Generator<Decoded> {
    let end = 0;
    for (const byte of chunk) {
      end++;
      const isHalf = byte === LF && this.#last === CR;
      this.#last = byte;
      if (isHalf) continue;
      this.#line.push(byte);
      if (byte !== LF && byte !== CR) continue;
      const line = this.#text.decode(new Uint8Array(this.#line), { stream: true });
      this.#line = [];
      if (line.length > 1) {
        this.#read(line);
        continue;
      }
      const { event: type, data, id = "" } = this.#fields;
      this.#fields = {};
      if (data !== undefined) yield { event: { type: type || "message", data, id }, end };
    }
  }

  #read(line: string) {
    const [, field, value] = /^([^:\r\n]*):? ?([^\r\n]*)/.exec(line) as unknown as [string, string, string];
    const before = this.#fields[field];
    this.#fields[field] = field === "data" && before !== undefined ? `${before}\n${value}` : value;
    if (field === "retry" && /^\d+$/.test(value)) this.retry = +value;
  }
}

/** The error that the event says by which the server ends a stream; `undefined` for the application's own. */
export function readTerminal({ type, data }: StreamEvent) {
  if (!/^(error|cancelled)$/.test(type)) return;
  try {
    const { code, message, error } = JSON.parse(data);
    if (code && error.code === code && error.message === message) return new ResumableError(message, { code });
  } catch {}
}

/** The bytes of a character that is not whole at the end of three bytes. */
export const PART_OF_CHARACTER = /[\xc0-\xff]$|[\xe0-\xff].$|[\xf0-\xff]..$|$/s;
