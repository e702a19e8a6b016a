// What this browser remembers for all tabs: the list of conversations. How far an answer has been read belongs to one
// tab, and resumable.js keeps it.

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
    console.warn("The browser's storage is full or closed.", error);
  }
}
