// The operator's page: fetches the figures once a second, and draws the last two minutes.

const SECONDS = 120;
const [WIDTH, HEIGHT] = [600, 150];
const SVG = "http://www.w3.org/2000/svg";

const OUTCOMES = ["completed", "cancelled", "replaced", "interrupted", "failed", "producer_lost"];
const PLOTS = [
  { title: "Live streams", series: { streams: (now) => now.streams } },
  { title: "Readers", series: { readers: (now) => now.readers } },
  { title: "Disconnects survived", series: { "since the start": (now) => now.survived } },
  {
    title: "How streams ended",
    series: Object.fromEntries(OUTCOMES.map((outcome) => [outcome, (now) => now.outcomes[outcome] ?? 0])),
  },
  {
    title: "Time to first byte",
    unit: " s",
    series: { median: (now, before) => quantile(0.5, now, before), "95th percentile": (now, before) => quantile(0.95, now, before) },
  },
  { title: "Held in memory", unit: " KiB", series: { logs: (now) => now.bytesHeld / 1024 } },
];

const latest = new Map(); // the figures of each worker: with several, each answer is from another one
const history = []; // their sums, one a second

function sum() {
  const all = [...latest.values()];
  const add = (name) => all.reduce((total, figures) => total + figures[name], 0);
  const outcomes = {};
  for (const figures of all)
    for (const [outcome, count] of Object.entries(figures.outcomes)) outcomes[outcome] = (outcomes[outcome] ?? 0) + count;
  const bounds = all.find((figures) => figures.first_bounds.length)?.first_bounds ?? [];
  const counts = Array(bounds.length + 1).fill(0);
  for (const figures of all) figures.first_counts.forEach((count, bucket) => (counts[bucket] += count));
  return { streams: add("streams"), readers: add("readers"), survived: add("survived"), bytesHeld: add("bytes_held"), outcomes, bounds, counts };
}

/** The bound of the bucket in which the quantile is, of what came between two moments; null if nothing did. */
function quantile(part, now, before) {
  const counts = now.counts.map((count, bucket) => count - (before.counts[bucket] ?? 0));
  const all = counts.reduce((total, count) => total + count, 0);
  if (!all) return null;
  let seen = 0;
  const bucket = counts.findIndex((count) => (seen += count) >= part * all);
  return now.bounds[Math.min(bucket, now.bounds.length - 1)];
}

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

function build(plot) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = plot.title;
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const part of [0.25, 0.5, 0.75]) element("line", { x1: 0, x2: WIDTH, y1: part * HEIGHT, y2: part * HEIGHT, class: "grid" }, svg);
  const legend = document.createElement("ul");
  const top = document.createElement("p");
  plot.top = top;
  plot.lines = Object.keys(plot.series).map((name, index) => {
    const item = document.createElement("li");
    item.className = `series-${index}`;
    const value = document.createElement("output");
    item.append(`${name} `, value);
    legend.append(item);
    return { path: element("path", { class: `series-${index}` }, svg), value, item };
  });
  figure.append(caption, top, svg, legend);
  document.getElementById("plots").append(figure);
}

function draw(plot) {
  const first = history[0];
  const lines = Object.values(plot.series).map((value) => history.map((now) => value(now, first)));
  const highest = nice(Math.max(...lines.flat()));
  plot.top.textContent = format(highest) + (plot.unit ?? "");
  lines.forEach((values, index) => {
    const { path, value, item } = plot.lines[index];
    let pen = "M";
    const points = values.flatMap((y, second) => {
      if (y === null) return ((pen = "M"), []);
      const point = `${pen}${WIDTH - ((history.length - 1 - second) / (SECONDS - 1)) * WIDTH},${HEIGHT - 2 - (y / highest) * (HEIGHT - 4)}`;
      pen = "L";
      return [point];
    });
    path.setAttribute("d", points.join(""));
    const last = values.at(-1);
    value.textContent = last === null ? "–" : format(last) + (plot.unit ?? "");
    item.hidden = lines.length > 2 && values.every((y) => !y);
    path.style.visibility = item.hidden ? "hidden" : "visible";
  });
}

function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

const format = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });

PLOTS.forEach(build);
const state = document.getElementById("state");
for (;;) {
  try {
    const response = await fetch("/operations/figures");
    if (!response.ok) throw new Error(`The server answered ${response.status}.`);
    const figures = await response.json();
    latest.set(figures.worker, figures);
    state.textContent = latest.size > 1 ? `${latest.size} workers` : "";
    history.push(sum());
    if (history.length > SECONDS) history.shift();
    PLOTS.forEach(draw);
  } catch (error) {
    state.textContent = `No figures: ${error.message}`;
  }
  await new Promise((resolve) => setTimeout(resolve, 1000));
}
