import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { loadBuildSpec } from "../../../producers/cli/build-spec.ts";

const folder = mkdtempSync(join(tmpdir(), "spec-"));
afterAll(() => rmSync(folder, { recursive: true }));
const file = join(folder, "spec.yaml");

const load = (text: string) => {
  writeFileSync(file, text);
  return loadBuildSpec(file);
};

test("files are read beside the specification, and travel as bytes", async () => {
  writeFileSync(join(folder, "a.bin"), Buffer.from([0, 255]));
  const spec = await load(
    "name: app\nfrom: { template: base }\nfiles:\n  - { path: /a, source: a.bin }\n  - path: /b\n    content: |\n      hi\n",
  );
  expect(spec.files).toEqual([
    { path: "/a", content: "AP8=" },
    { path: "/b", content: "aGkK" },
  ]);
});

test.each([
  ["name: App\nfrom: { template: base }\n", /spec\.yaml:1: name: must be 1 to 63/, ["name"]],
  ["name: app\nfrom: { template: base }\nsetup:\n  - ok\n  - 7\n", /:5: setup\.1: must be a string/, ["setup.1"]],
  ["name: app\nfrom: { template: base }\ncores: 1\nmemory: 5\n", /:4: memory: a build has no such field/, ["memory"]],
  ["name: app\nfrom:\n  archive: local/x\n", /:3: from\.archive: must be STORAGE/, ["from.archive"]],
  ["name: app\nfrom: { template: base }\nfiles:\n  - path: /a\n", /:4: files\.0: needs either source/, ["files.0"]],
  ["name: [app\n", /spec\.yaml:2: is no YAML/, ["file"]],
  [
    "name: app\nfrom: { template: base }\nfiles: [{ path: /a, source: no }]\n",
    /:3: files\.0\.source: no can't be read/,
    ["files.0.source"],
  ],
])("%j: what is wrong is told with line and field", async (text, message, fields) => {
  await expect(load(text)).rejects.toMatchObject({
    code: "invalid_input",
    message: expect.stringMatching(message),
    facts: { fields },
  });
});
