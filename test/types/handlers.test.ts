/** The catalog of job kinds and its users hold together at compile time: tsc is run on variants of the real files. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { JOB_NAMES } from "../../shared/jobs/index.ts";
import { compile, ROOT } from "./compile.ts";

/** Errors by file name. */
let errors: Map<string, string[]>;

const files: Record<string, string> = {};

beforeAll(async () => {
  const path = join(ROOT, "workers", "handlers", "index.ts");
  const index = (await readFile(path, "utf8"))
    .replaceAll('"./', `"${ROOT}workers/handlers/`)
    .replaceAll('"../../', `"${ROOT}`);
  const handlers = /const handlers = \{\s*([^}]*?),?\s*\} satisfies/.exec(index)?.[1] ?? "";
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
  errors = await compile(files);
}, 300_000);

const CALLS: Record<string, string> = {
  good: 'const done = await (await fleet.exec({ sandboxId, command: "true" })).result(); const code: number = done.exitCode;',
  "wrong-field": 'await fleet.exec({ sandboxId, comand: "true" });',
  "missing-field": "await fleet.expose({ sandboxId, port: 80 });",
  "wrong-type": 'await fleet.provision({ template: "x", cores: "2" });',
  "wrong-action": 'await fleet.power({ sandboxId, action: "explode" });',
  "wrong-result": "const text: string = (await (await fleet.destroy({ sandboxId })).result()).existed;",
  "no-such-kind": "await fleet.teleport({ sandboxId });",
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
