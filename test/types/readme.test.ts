/** The README's examples in TypeScript hold against the library as it is. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { compile, ROOT } from "./compile.ts";

/** What the reader has. */
const AROUND = `
import { createReadStream, createWriteStream } from "node:fs";
import { pipeline } from "node:stream/promises";
declare function bill(event: { cursor: string; type: string }): Promise<void>;
declare const signal: AbortSignal;
declare const request: Request;
declare const secret: string;
`;
const MODULES: Readonly<Record<string, string>> = {
  "sandbox-fleet": "index.ts",
  "sandbox-fleet/cmux": "cmux/index.ts",
  "sandbox-fleet/webhooks": "webhooks.ts",
};

test("each example compiles", async () => {
  const readme = readFileSync(join(ROOT, "README.md"), "utf8");
  const examples = [...readme.matchAll(/^```ts\n([\s\S]*?)^```/gm)].map(([, code = ""]) =>
    code.replaceAll(
      /from "(sandbox-fleet[^"]*)"/g,
      (_, name: string) => `from "${join(ROOT, "producers", MODULES[name] ?? name)}"`,
    ),
  );
  expect(examples.length).toBeGreaterThanOrEqual(3);
  const wrong = `${examples[0]}\nawait fleet.provision({ templete: "cmux-base" });`;
  const files = Object.fromEntries([...examples, wrong].map((code, at) => [`example-${at}.ts`, AROUND + code]));
  const errors = await compile(files);
  const ofTheReader = (name: string) => (errors.get(name) ?? []).filter((line) => !/TS6133|TS6192/.test(line)); // unused
  expect(examples.map((_, at) => ofTheReader(`example-${at}.ts`))).toEqual(examples.map(() => []));
  expect(ofTheReader(`example-${examples.length}.ts`).join("\n")).toContain("templete");
});
