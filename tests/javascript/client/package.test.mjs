// The package: found by its name, bundled, and as its types say.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import * as client from "../../../fastapi_resumable/static/resumable.js";

const STATIC = fileURLToPath(new URL("../../../fastapi_resumable/static/", import.meta.url));

/** Run a program in a project that has the package installed. */
async function inProject(run) {
  const folder = mkdtempSync(path.join(tmpdir(), "project-"));
  try {
    mkdirSync(path.join(folder, "node_modules"));
    symlinkSync(STATIC, path.join(folder, "node_modules", "fastapi-resumable"));
    return await run(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const PROGRAM = 'import * as client from "fastapi-resumable"; console.log(Object.keys(client).join())';
const node = (program, folder) =>
  execFileSync(process.execPath, ["--input-type=module", "--eval", program], { cwd: folder, encoding: "utf8" }).trim();

test("the types declare what the module exports", () => {
  const types = readFileSync(path.join(STATIC, "resumable.d.ts"), "utf8");
  const declared = [...types.matchAll(/^export (?:function|class|const) (\w+)/gm)].map(([, name]) => name);
  assert.deepEqual(declared.sort(), Object.keys(client).sort());
});

test("Node imports the package by its name", () =>
  inProject((folder) => assert.equal(node(PROGRAM, folder), Object.keys(client).join())));

test("a bundler takes it in", () =>
  inProject(async (folder) => {
    const stdin = { contents: PROGRAM, resolveDir: folder };
    const options = { bundle: true, format: "esm", minify: true, write: false, logLevel: "error" };
    const { outputFiles, warnings } = await build({ stdin, ...options });
    assert.deepEqual(warnings, []);
    assert.equal(node(outputFiles[0].text, folder), Object.keys(client).join());
  }));

test("without a word about it, the routes are under /v1", async () => {
  const asked = [];
  const fetch = async (url) => {
    asked.push(url);
    return Response.json([]);
  };
  await client.lookup(["a"], { fetch });
  await client.stop("a/b::c", { fetch });
  assert.deepEqual(asked, ["/v1/streams/lookup", "/v1/stream?conv_id=a%2Fb%3A%3Ac&epoch=&from="]);
});
