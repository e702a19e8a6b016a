// The native EventSource, as it comes: it reconnects by itself, and stops when it is answered 204.

const $ = (id) => document.getElementById(id);
const RUN = "run"; // in the address, so that a reload listens to the same recitation

let source = null;
let cut = false;

function listen(run) {
  source?.close();
  $("verses").replaceChildren();
  $("events").replaceChildren();
  $("cut").disabled = false;
  show("connecting", "Connecting");
  source = new EventSource(`/demo/poem?run=${encodeURIComponent(run)}`);
  source.addEventListener("open", () => {
    show("open", "Live");
    note("open: connected");
  });
  source.addEventListener("verse", (event) => addVerse(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CONNECTING) {
      show("connecting", "Reconnecting");
      note("error: the connection ended, the browser reconnects");
      cut = true;
    } else {
      show("closed", "Closed");
      note("error: answered 204, the stream is over, the browser stops");
      $("cut").disabled = true;
    }
  });
}

function addVerse({ number, line }) {
  const verse = document.createElement("li");
  verse.dataset.number = number;
  if (cut) verse.className = "after-cut";
  cut = false;
  verse.append(document.createElement("span"));
  verse.firstChild.textContent = line;
  $("verses").append(verse);
}

function show(state, label) {
  $("toolbar").dataset.state = state;
  $("state").textContent = label;
}

function note(text) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString("en-GB");
  item.append(time, ` ${text}`);
  $("events").append(item);
}

$("start").addEventListener("click", () => {
  const run = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  history.replaceState(null, "", `?${RUN}=${run}`);
  listen(run);
});

$("cut").addEventListener("click", () =>
  fetch(`/demo/cut?run=${encodeURIComponent(new URLSearchParams(location.search).get(RUN))}`, { method: "POST" }),
);

const running = new URLSearchParams(location.search).get(RUN);
if (running) listen(running);
