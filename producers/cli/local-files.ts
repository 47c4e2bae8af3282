/** Files and folders of this machine as contents, and back. A folder is a tar, made and unpacked by the system's own tar. */
import { type ChildProcess, spawn } from "node:child_process";
import { createReadStream, createWriteStream } from "node:fs";
import { access, chmod, constants, mkdir, realpath, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { addAbortSignal, Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { pipeline } from "node:stream/promises";
import { FleetError } from "../../shared/errors.ts";

export interface LocalContent {
  content: AsyncIterable<Uint8Array>;
  /** Of a file. */
  mode?: number;
}

/** Throws `invalid_input` for what can't be read. `-` is stdin. */
export async function openLocal(
  path: string,
  { recursive, signal }: { recursive: boolean; signal: AbortSignal },
): Promise<LocalContent> {
  if (path === "-") return { content: addAbortSignal(signal, process.stdin) };
  const facts = await stat(path).catch((cause: unknown) => {
    throw refuse(`${path}: ${reasonOf(cause)}`, cause);
  });
  if (recursive && facts.isDirectory()) return { content: readFolder(path, signal) };
  if (recursive) throw refuse(`${path}: is no folder; leave --recursive out`);
  if (facts.isDirectory()) throw refuse(`${path}: is a folder; add --recursive`);
  await access(path, constants.R_OK).catch((cause: unknown) => {
    throw refuse(`${path}: ${reasonOf(cause)}`, cause);
  });
  return { content: createReadStream(path, { signal }), mode: facts.mode & 0o777 };
}

/** A file appears under its name when it is whole; a link is followed, and what is a pipe or a device stays one. */
export async function saveFile(path: string, content: AsyncIterable<Uint8Array>, mode: number): Promise<void> {
  const there = await stat(path).catch(() => null);
  try {
    if (there && !there.isFile()) await pipeline(content, createWriteStream(path));
    else await saveWhole(await realpath(path).catch(() => path), content, mode);
  } catch (cause) {
    if (!isFileError(cause)) throw cause;
    const what = cause.code === "ENOENT" ? `its folder ${dirname(path)} ` : "";
    throw refuse(`${path}: ${what}${reasonOf(cause)}`, cause);
  }
}

async function saveWhole(path: string, content: AsyncIterable<Uint8Array>, mode: number): Promise<void> {
  const part = join(dirname(path), `.${basename(path)}.${process.pid}.part`);
  try {
    await pipeline(content, createWriteStream(part, { mode: 0o600 }));
    await chmod(part, mode & 0o777);
    await rename(part, path);
  } catch (error) {
    await rm(part, { force: true });
    throw error;
  }
}

/**
 * Unpacked once it is here as a whole: what is cut short leaves nothing. (It is no larger than one transfer.) What a sandbox
 * sends is trusted with this folder only: tar follows no name out of it, also not through a link.
 */
export async function saveFolder(path: string, content: AsyncIterable<Uint8Array>): Promise<void> {
  const whole = await buffer(content);
  await mkdir(path, { recursive: true }).catch((cause: unknown) => {
    throw refuse(`${path}: ${reasonOf(cause)}`, cause);
  });
  const tar = spawn("tar", ["-x", "-f", "-", "--no-same-owner", "--no-same-permissions", "-C", path], {
    stdio: ["pipe", "ignore", "inherit"],
    detached: true, // Ctrl-C is for whom waits, and this takes a moment only
  });
  const ended = endOf(tar, [0]);
  tar.stdin.on("error", () => {}); // it says itself why it left, and does so at the archive's end mark already
  tar.stdin.end(whole);
  await ended;
}

/** Where something goes that is named `name` there: into a folder that exists, as with `cp`. */
export async function within(path: string, name: string): Promise<string> {
  const isFolder = path.endsWith("/") || (await stat(path).catch(() => null))?.isDirectory() === true;
  return isFolder ? join(path, basename(name)) : path;
}

async function* readFolder(path: string, signal: AbortSignal): AsyncGenerator<Buffer> {
  const tar = spawn("tar", ["-c", "-f", "-", "-C", resolve(path), "."], {
    stdio: ["ignore", "pipe", "inherit"],
    signal,
  });
  // 1: a file was changed while it was read.
  const ended = endOf(tar, [0, 1]);
  ended.catch(() => {});
  try {
    yield* Readable.from(tar.stdout);
    await ended;
  } finally {
    tar.kill();
  }
}

function endOf(tar: ChildProcess, allowed: readonly number[]): Promise<void> {
  return new Promise((done, fail) => {
    tar.once("error", (cause) => fail(refuse(`tar: ${reasonOf(cause)}`, cause)));
    tar.once("close", (code) => {
      if (code !== null && allowed.includes(code)) done();
      else fail(refuse(`tar failed (${code ?? "killed"}); what it said is above`));
    });
  });
}

const isFileError = (error: unknown): error is NodeJS.ErrnoException =>
  error instanceof Error && "code" in error && "syscall" in error;

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "is not there",
  EACCES: "is not allowed to this user",
  EPERM: "is not allowed to this user",
  EISDIR: "is a folder",
  ENOTDIR: "goes through what is no folder",
  ENOSPC: "does not fit: no space is left",
};

export const reasonOf = (error: unknown): string =>
  isFileError(error) ? (REASONS[error.code ?? ""] ?? String(error.code)) : "failed";

const refuse = (text: string, cause?: unknown) =>
  new FleetError("invalid_input", text, { cause, facts: { fields: ["path"] } });
