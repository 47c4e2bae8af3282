/** The catalog of job kinds and its users hold together at compile time: tsc is run on variants of the real files. */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { JOB_NAMES } from "../../shared/jobs/index.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const TSC = join(ROOT, "node_modules", ".bin", "tsc");

let folder: string;
/** Errors by file name. */
let errors: Map<string, string[]>;

const files: Record<string, string> = {};

beforeAll(async () => {
  const path = join(ROOT, "workers", "handlers", "index.ts");
  const index = (await readFile(path, "utf8"))
    .replaceAll('"./', `"${ROOT}workers/handlers/`)
    .replaceAll('"../../', `"${ROOT}`);
  const handlers = /const handlers = \{([^}]*)\} satisfies/.exec(index)?.[1] ?? "";
  if (handlers === "") throw new Error(`there is no list of handlers in ${path}`);
  const kinds = handlers.split(",").map((kind) => kind.trim());
  files["all.ts"] = index;
  for (const kind of JOB_NAMES) {
    const others = kinds.filter((one) => one !== kind);
    files[`without-${kind}.ts`] = index.replace(handlers, ` ${others.join(", ")} `);
  }
  files["swapped.ts"] = index.replace(handlers, handlers.replace("hide,", "hide: expose,"));
  files["unknown.ts"] = index.replace(handlers, `${handlers}, explode: hide `);
  for (const [name, lines] of Object.entries(CALLS)) files[`call-${name}.ts`] = toCall(lines);
  folder = await mkdtemp(join(tmpdir(), "fleet-types-"));
  await Promise.all(Object.entries(files).map(([name, text]) => writeFile(join(folder, name), text)));
  const config = {
    extends: join(ROOT, "tsconfig.json"),
    // The variants lie outside and name the real files by their full paths.
    compilerOptions: { rewriteRelativeImportExtensions: false, typeRoots: [join(ROOT, "node_modules", "@types")] },
    include: [],
    files: Object.keys(files),
  };
  await writeFile(join(folder, "package.json"), JSON.stringify({ type: "module" }));
  await writeFile(join(folder, "tsconfig.json"), JSON.stringify(config));
  errors = await compile(join(folder, "tsconfig.json"));
}, 60_000);
afterAll(() => rm(folder, { recursive: true, force: true }));

/** tsc's errors, with their explanations, by the file that they are in. */
async function compile(project: string): Promise<Map<string, string[]>> {
  const output = await new Promise<string>((resolve) => {
    execFile(TSC, ["--noEmit", "--pretty", "false", "-p", project], { cwd: folder }, (_, out) => resolve(out));
  });
  const found = new Map<string, string[]>();
  let file = "";
  for (const line of output.split("\n").filter(Boolean)) {
    file = /^([^\s(][^(]*)\(\d+,\d+\): error/.exec(line)?.[1] ?? file;
    found.set(file, [...(found.get(file) ?? []), line]);
  }
  return found;
}

const CALLS: Record<string, string> = {
  good: 'const done = await (await fleet.exec({ sandboxId, command: "true" })).result(); const code: number = done.exitCode;',
  "wrong-field": 'await fleet.exec({ sandboxId, comand: "true" });',
  "missing-field": "await fleet.expose({ sandboxId, port: 80 });",
  "wrong-type": 'await fleet.provision({ template: "x", cores: "2" });',
  "wrong-action": 'await fleet.power({ sandboxId, action: "explode" });',
  "wrong-result": "const text: string = (await (await fleet.destroy({ sandboxId })).result()).existed;",
  "no-such-kind": "await fleet.migrate({ sandboxId });",
};

const toCall = (lines: string) =>
  [
    `import type { Fleet } from "${ROOT}producers/index.ts";`,
    "declare const fleet: Fleet;",
    "declare const sandboxId: string;",
    lines,
    "export {};",
  ].join("\n");

test("as they are, they compile", () => {
  expect(errors.get("all.ts")).toBeUndefined();
  expect(errors.get("call-good.ts")).toBeUndefined();
  // Nothing else is wrong, so that each error below is the one it is about.
  expect([...errors.keys()].filter((file) => !(file in files))).toEqual([]);
});

describe("handlers", () => {
  test.each(JOB_NAMES)("without one for %s do not compile, and the error names it", (kind) => {
    expect(files[`without-${kind}.ts`]).not.toBe(files["all.ts"]);
    const found = errors.get(`without-${kind}.ts`)?.join("\n");
    expect(found).toMatch(new RegExp(`error TS(1360|2741): .*\\n?.*Property '${kind}' is missing`));
  });

  test("of another kind, or of a kind that is not in the catalog, do not compile", () => {
    expect(errors.get("swapped.ts")?.[0]).toMatch(/error TS(2322|2375)/);
    expect(errors.get("unknown.ts")?.[0]).toMatch(/error TS(2353|1360)/);
  });
});

describe("a producer's call", () => {
  test.each(Object.keys(CALLS).filter((name) => name !== "good"))("%s does not compile", (name) => {
    const [first = ""] = errors.get(`call-${name}.ts`) ?? [];
    // On the call itself, the fourth line.
    expect(first).toMatch(/^call-[a-z-]+\.ts\(4,\d+\): error TS(2322|2339|2345|2353|2561|2741|2820)/);
  });
});
