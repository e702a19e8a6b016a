// Where there are several workers, responses name the worker that sent them, and the one that writes the answer.

/** Show it, and pass the response on. */
export function showWorkers(response) {
  const [reads, writes] = ["X-Worker", "X-Writer"].map((name) => response.headers.get(name));
  const line = document.getElementById("workers");
  line.hidden = !reads;
  line.textContent = writes ? `Written by worker ${writes}, read through worker ${reads}` : `Read through worker ${reads}`;
  return response;
}
