// What this browser remembers. The list of conversations belongs to all tabs (localStorage); how far an answer has been
// read belongs to one tab (sessionStorage), which is what lets a reload go on where it was.

const SAVE_EVERY = 250; // ms
const LIST = "conversations";

export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** `{id, title}`, the latest first. */
export const conversations = {
  all: () => read(localStorage, LIST) ?? [],
  title: (id) => conversations.all().find((one) => one.id === id)?.title,
  add: (id, title) => write(localStorage, LIST, [{ id, title }, ...conversations.all().filter((one) => one.id !== id)]),
  remove: (id) => write(localStorage, LIST, conversations.all().filter((one) => one.id !== id)),
};

/** How far this tab has read the answer that is being written in a conversation. */
export class Bookmark {
  #id;
  #timer = 0;

  /** The one that was kept for this turn, or a fresh one. */
  constructor(id, turn) {
    this.#id = id;
    Object.assign(this, { turn, question: "", sent: true, text: "", lastEventId: "", pieces: [] });
    const kept = Bookmark.of(id);
    if (kept?.turn === turn) Object.assign(this, kept);
  }

  static of(id) {
    return read(sessionStorage, `bookmark:${id}`);
  }

  /** Keep it soon: an answer comes in many small pieces. */
  keep() {
    this.#timer ||= setTimeout(() => this.keepNow(), SAVE_EVERY);
  }

  keepNow() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    write(sessionStorage, `bookmark:${this.#id}`, this);
  }

  drop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    sessionStorage.removeItem(`bookmark:${this.#id}`);
  }
}

function read(storage, key) {
  try {
    return JSON.parse(storage.getItem(key));
  } catch {
    return null;
  }
}

function write(storage, key, value) {
  try {
    storage.setItem(key, JSON.stringify(value));
  } catch (error) {
    console.warn("The browser's storage is full or closed; a reload will replay the whole answer.", error);
  }
}
