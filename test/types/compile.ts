import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const TSC = join(ROOT, "node_modules", ".bin", "tsc");

/** tsc's errors on these files, with their explanations, by file name. They name the real files by their full paths. */
export async function compile(files: Readonly<Record<string, string>>): Promise<Map<string, string[]>> {
  const folder = await mkdtemp(join(tmpdir(), "fleet-types-"));
  try {
    const config = {
      extends: join(ROOT, "tsconfig.json"),
      compilerOptions: { rewriteRelativeImportExtensions: false, typeRoots: [join(ROOT, "node_modules", "@types")] },
      include: [],
      files: Object.keys(files),
    };
    const texts = {
      ...files,
      "package.json": JSON.stringify({ type: "module" }),
      "tsconfig.json": JSON.stringify(config),
    };
    await Promise.all(Object.entries(texts).map(([name, text]) => writeFile(join(folder, name), text)));
    return toErrors(await run(folder));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

const run = (folder: string) =>
  new Promise<string>((resolve) => {
    const words = ["--noEmit", "--pretty", "false", "-p", join(folder, "tsconfig.json")];
    execFile(TSC, words, { cwd: folder }, (_, out) => resolve(out));
  });

function toErrors(output: string): Map<string, string[]> {
  const found = new Map<string, string[]>();
  let file = "";
  for (const line of output.split("\n").filter(Boolean)) {
    file = /^([^\s(][^(]*)\(\d+,\d+\): error/.exec(line)?.[1] ?? file;
    found.set(file, [...(found.get(file) ?? []), line]);
  }
  return found;
}
