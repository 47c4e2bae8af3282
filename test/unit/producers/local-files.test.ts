import { execFileSync } from "node:child_process";
import { lstatSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterAll, expect, test } from "vitest";
import { saveFile } from "../../../producers/cli/local-files.ts";

const folder = mkdtempSync(join(tmpdir(), "local-files-"));
afterAll(() => rmSync(folder, { recursive: true }));
const here = (name: string) => join(folder, name);
const save = (name: string, text: string) => saveFile(here(name), Readable.from([Buffer.from(text)]), 0o640);

test("a link is followed, and stays", async () => {
  writeFileSync(here("file"), "old");
  symlinkSync("file", here("link"));
  await save("link", "new");
  expect(lstatSync(here("link")).isSymbolicLink()).toBe(true);
  expect(readFileSync(here("file"), "utf8")).toBe("new");
});

test("what is no file, such as a pipe or a device, is written into and stays what it is", async () => {
  execFileSync("mkfifo", [here("pipe")]);
  const [read] = await Promise.all([readFile(here("pipe"), "utf8"), save("pipe", "through")]);
  expect(read).toBe("through");
  expect(lstatSync(here("pipe")).isFIFO()).toBe(true);
});

test("what is in the way is named", async () => {
  await expect(save("none/file", "")).rejects.toMatchObject({
    code: "invalid_input",
    text: `${here("none/file")}: its folder ${here("none")} is not there`,
  });
});
