/**
 * The manifest that is published: of the dependencies only what the packed files import, so that a backend does not install
 * what workers need (`npm pack` runs this as prepack with `trim`, as postpack with `restore`).
 */
import { copyFileSync, existsSync, globSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { z } from "zod";

const MANIFEST = "package.json";
const KEPT = "node_modules/.package.json.before-pack";

const Manifest = z.looseObject({ files: z.array(z.string()), dependencies: z.record(z.string(), z.string()) });

/** Package names that a built file imports. */
function importsOf(file: string): string[] {
  const specifiers = readFileSync(file, "utf8").matchAll(/(?:\bfrom|\bimport)\s*\(?\s*"([^"./][^"]*)"/g);
  return [...specifiers].map(([, name = ""]) => name.split("/", name.startsWith("@") ? 2 : 1).join("/"));
}

function trim(): void {
  if (existsSync(KEPT)) restore(); // an earlier pack was cut short
  const manifest = Manifest.parse(JSON.parse(readFileSync(MANIFEST, "utf8")));
  const files = manifest.files.flatMap((folder) => globSync(`${folder}/**/*.js`));
  if (files.length === 0) throw new Error(`nothing is built in ${manifest.files.join(", ")}; run: npm run build`);
  const imported = new Set(files.flatMap(importsOf));
  const kept = Object.entries(manifest.dependencies).filter(([name]) => imported.has(name));
  const { scripts, devDependencies, allowScripts, ...published } = manifest;
  copyFileSync(MANIFEST, KEPT);
  const text = JSON.stringify({ ...published, dependencies: Object.fromEntries(kept) }, null, 2);
  writeFileSync(MANIFEST, `${text}\n`);
}

function restore(): void {
  renameSync(KEPT, MANIFEST);
}

const [verb] = process.argv.slice(2);
if (verb === "trim") trim();
else if (verb === "restore") restore();
else throw new Error("usage: manifest.ts trim | restore");
