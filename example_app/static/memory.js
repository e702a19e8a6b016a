// What this browser remembers for all tabs: the list of conversations. How far an answer has been read belongs to one
// tab, and resumable.js keeps it.

const LIST = "conversations";

export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** `{id, title}`, the latest first. */
export const conversations = {
  all: () => read() ?? [],
  title: (id) => conversations.all().find((one) => one.id === id)?.title,
  add: (id, title) => write([{ id, title }, ...conversations.all().filter((one) => one.id !== id)]),
  remove: (id) => write(conversations.all().filter((one) => one.id !== id)),
};

function read() {
  try {
    return JSON.parse(localStorage.getItem(LIST));
  } catch {
    return null;
  }
}

function write(list) {
  try {
    localStorage.setItem(LIST, JSON.stringify(list));
  } catch (error) {
    console.warn("The browser's storage is full or forbidden.", error);
  }
}
