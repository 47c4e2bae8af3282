import { execFileSync } from "node:child_process";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterAll, expect, test } from "vitest";
import { saveFile, saveFolder } from "../../../producers/cli/local-files.ts";

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

test("a folder of which a part has come is not begun with", async () => {
  mkdirSync(here("from"));
  writeFileSync(here("from/big"), "x".repeat(100_000));
  const tar = execFileSync("tar", ["-c", "-C", here("from"), "."]);
  async function* cut() {
    yield tar.subarray(0, 50_000);
    throw new Error("cut");
  }
  await expect(saveFolder(here("to"), cut())).rejects.toThrow("cut");
  expect(existsSync(here("to"))).toBe(false);
  await saveFolder(here("to"), Readable.from([tar.subarray(0, 50_000), tar.subarray(50_000)]));
  expect(lstatSync(here("to/big")).size).toBe(100_000);
});

test("what is in the way is named", async () => {
  await expect(save("none/file", "")).rejects.toMatchObject({
    code: "invalid_input",
    text: `${here("none/file")}: its folder ${here("none")} is not there`,
  });
});
