// Builds the modules that the router serves out of their sources. `--check` fails if they are older than those.

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const STATIC = fileURLToPath(new URL("../../fastapi_resumable/static/", import.meta.url));

/** What is built, by its path. Sources are named relative to it, so that every machine builds the same. */
async function built() {
  const { outputFiles } = await build({
    absWorkingDir: STATIC,
    entryPoints: ["src/resumable.ts", "src/ag-ui.ts"],
    external: ["./resumable.js"],
    outdir: ".",
    bundle: true,
    format: "esm",
    target: "es2022",
    minify: true,
    sourcemap: true,
    write: false,
    logLevel: "error",
  });
  return outputFiles.map(({ path, text }) => [path, text]);
}

  const stale = (await built()).filter(([path, text]) => {
    try {
      return readFileSync(path, "utf8") !== text;
    } catch {
      return true;
    }
  });
  if (!process.argv.includes("--check")) stale.forEach(([path, text]) => writeFileSync(path, text));
  else if (stale.length) {
    console.error(`${stale.map(([path]) => path).join(", ")}: older than the sources in src/. Run: make js-build`);
    process.exit(1);
  }
