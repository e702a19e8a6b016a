// What is on the screen. All text goes in as text, never as HTML.

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 52rem)");
const NOTES = {
  cancelled: "Stopped. This is as far as it got.",
  failed: "The answer broke off: something failed on the server.",
  interrupted: "The answer broke off: the server went away while it was writing.",
  lost: "The answer is no longer there: the server has forgotten it.",
};
const number = (count) => count.toLocaleString("en");
const LABELS = { connecting: "Connecting", open: "Live", reconnecting: "Cut off", completed: "Complete", cancelled: "Stopped" };

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The sidebar: every conversation, a spinner on those whose answer is being written. */
export function showConversations(list, current, writing) {
  $("conversations").replaceChildren(
    ...list.map(({ id, title }) => {
      const item = element("li");
      const link = element("a");
      link.href = `#${id}`;
      if (id === current) link.setAttribute("aria-current", "page");
      link.append(element("span", "conversation-title", title));
      if (writing.has(id)) {
        const spinner = element("span", "spinner");
        spinner.setAttribute("role", "img");
        spinner.setAttribute("aria-label", "an answer is being written");
        link.append(spinner);
      }
      item.append(link);
      return item;
    }),
  );
}

export function showTitle(title, writing) {
  $("title").textContent = title ?? "New conversation";
  $("forget").hidden = !title;
  document.title = `${writing ? "● " : ""}${title ?? "fastapi-resumable"}`;
}

/** Take everything from the screen that belongs to one conversation. */
export function clear() {
  $("turns").replaceChildren();
  $("welcome").hidden = true;
  $("line").hidden = true;
  say("");
  setWriting(false);
}

/** Show what the user can do here. */
export function welcome() {
  $("welcome").hidden = false;
}

export function addQuestion(text) {
  $("welcome").hidden = true;
  const question = element("p", "question");
  question.append(element("span", "visually-hidden", "You: "), element("span", "question-text", text));
  $("turns").append(question);
  $("log").scrollTop = $("log").scrollHeight;
}

/** An answer on the screen, whole or growing. */
export class Answer {
  #article = element("article", "answer");
  #text = element("div", "answer-text");
  #end = null; // the piece that grows

  constructor(text = "") {
    this.#article.append(element("span", "visually-hidden", "Answer: "), this.#text);
    $("turns").append(this.#article);
    this.add(text);
  }

  set writing(writing) {
    this.#article.classList.toggle("writing", writing);
    this.#article.setAttribute("aria-busy", String(writing)); // read out once it is whole, not word by word
  }

  add(text) {
    const log = $("log");
    const following = log.scrollHeight - log.scrollTop - log.clientHeight < 120;
    if (!this.#end) this.#text.append((this.#end = document.createTextNode("")));
    this.#end.data += text;
    if (following) log.scrollTop = log.scrollHeight;
  }

  set text(text) {
    this.#text.replaceChildren();
    this.#end = null;
    this.add(text);
  }

  /** Mark where the connection was lost; what comes next was written meanwhile. */
  seam() {
    const seam = element("span", "seam");
    seam.title = "Here the connection was lost. What follows was written meanwhile.";
    const caught = element("span", "caught");
    this.#end = document.createTextNode("");
    caught.append(this.#end);
    this.#text.append(seam, caught);
  }

  /** From here on, what comes is live again. */
  live() {
    if (this.#end?.parentNode !== this.#text) this.#end = null;
  }

  note(status, message = NOTES[status]) {
    this.#article.dataset.status = status;
    if (message) this.#article.append(element("p", "answer-note", message));
  }
}

/** Swap Send for Stop, and back. */
export function setWriting(writing) {
  const focused = document.activeElement === $("stop") || document.activeElement === $("send");
  $("send").hidden = writing;
  $("stop").hidden = !writing;
  $("cut").disabled = !writing;
  if (focused) $("question").focus();
}

/** One sentence on what has just happened; it is read out, too. */
export function say(sentence) {
  $("status").textContent = sentence;
}

/** The connection: its state, and the pieces in which the stream has come so far. */
export function showLine(state, pieces) {
  const total = pieces.at(-1)?.to ?? 0;
  $("line").hidden = false;
  $("line").dataset.state = state;
  $("line-label").textContent = LABELS[state] ?? "Ended";
  $("line-bytes").textContent = `${number(total)} bytes`;
  $("tape").setAttribute(
    "aria-label",
    `${number(total)} bytes over ${pieces.length} connection${pieces.length === 1 ? "" : "s"}`,
  );
  const tape = $("tape");
  while (tape.children.length > pieces.length) tape.lastChild.remove();
  pieces.forEach(({ from, caught, to }, index) => {
    const piece = tape.children[index] ?? tape.appendChild(element("span", "piece"));
    piece.style.flexGrow = Math.max(to - from, 1);
    piece.style.setProperty("--caught", `${(100 * (caught - from)) / Math.max(to - from, 1)}%`);
    piece.title = `bytes ${from}–${to}${caught > from ? `, ${caught - from} of them caught up` : ""}`;
  });
}

/** Wire the controls to what they do. */
export function wire({ onAsk, onStop, onCut, onNew, onForget }) {
  const question = $("question");
  const submit = () => {
    const text = question.value.trim();
    if (!text || $("send").hidden) return;
    question.value = "";
    grow();
    onAsk(text);
  };
  const grow = () => {
    question.style.height = "auto";
    question.style.height = `${Math.min(question.scrollHeight, 200)}px`;
  };
  question.addEventListener("input", grow);
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("suggestions").addEventListener("click", ({ target }) => {
    const suggestion = target.closest(".suggestion");
    if (suggestion) onAsk(suggestion.textContent);
  });
  $("stop").addEventListener("click", onStop);
  $("cut").addEventListener("click", onCut);
  $("forget").addEventListener("click", onForget);
  $("new").addEventListener("click", () => {
    showSidebar(false);
    onNew();
    question.focus();
  });

  $("menu").addEventListener("click", () => showSidebar(!document.body.classList.contains("sidebar-open")));
  $("shade").addEventListener("click", () => showSidebar(false));
  $("conversations").addEventListener("click", () => showSidebar(false));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.body.classList.contains("sidebar-open")) {
      showSidebar(false);
      $("menu").focus();
    }
  });
}

/** Give a question back that could not be asked. */
export function giveBack(question) {
  if (!$("question").value) $("question").value = question;
}

// On a narrow screen the sidebar lies over the rest.
function showSidebar(open) {
  document.body.classList.toggle("sidebar-open", open && narrow.matches);
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("new").focus();
}
