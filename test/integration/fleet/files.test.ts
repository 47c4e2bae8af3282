/** Files into sandboxes and out of them: whole or not at all, on every way there is, and for their producer alone. */
import { execFileSync, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  truncateSync,
  watch,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ContentSource, JobInput } from "../../../producers/index.ts";
import { TRANSFER_LIMIT } from "../../../shared/jobs/fields.ts";
import { PIECE_BYTES } from "../../../shared/state/contents.ts";
import { toReadScript } from "../../../workers/exec/file-scripts.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;
let box: Awaited<ReturnType<typeof provisionOne>>;
/** The sandbox's own folders, on this machine. */
let root: string;
let workspace: string;
beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1, templates: [{ name: "cmux-base" }, { name: "old-execd", guest: { files: false } }] },
  });
  box = await provisionOne(bed.fleet);
  root = containerOf(bed, box.vmid)?.root ?? "";
  workspace = join(root, "workspace");
});
afterAll(() => bed.close());

const PATIENCE = { timeoutMs: 20_000 };
const at = (...names: string[]) => join(root, ...names);
const text = (...names: string[]) => readFileSync(at(...names), "utf8");

const put = async (path: string, content: ContentSource, more: Partial<JobInput<"upload">> = {}) =>
  (await bed.fleet.upload({ sandboxId: box.sandboxId, path, ...more }, content)).result(PATIENCE);
const get = (path: string, more: Partial<JobInput<"download">> = {}) =>
  bed.fleet.download({ sandboxId: box.sandboxId, path, ...more });
const fetched = async (path: string, more: Partial<JobInput<"download">> = {}) =>
  (await (await get(path, more)).content(PATIENCE).buffer()).toString("utf8");
const contentKeys = () => bed.redis.keys(`${bed.keys.content("")}*`);
/** What transfers have left in the sandbox that is not theirs to keep. */
const stages = () =>
  [root, workspace].flatMap((folder) => readdirSync(folder).filter((name) => name.startsWith(".fleet-")));

test("what is uploaded is there byte by byte, and comes back the same, late and from another process", async () => {
  const content = randomBytes(3 * PIECE_BYTES + 17);
  const path = at("new/folder", 'it\'s "$here" -n.bin');
  expect(await put(path, content)).toEqual({ path, bytes: content.length });
  expect(readFileSync(path).equals(content)).toBe(true);
  const { id } = await get(path);
  const other = await bed.client().operation(id);
  if (other.kind !== "download") throw new Error(other.kind);
  expect(await other.result(PATIENCE)).toEqual({ path, bytes: content.length, mode: 0o644 });
  for (let again = 0; again < 2; again++) expect((await other.content().buffer()).equals(content)).toBe(true);
  expect(await bed.redis.ttl(bed.keys.content(id))).toBeLessThanOrEqual(300);
  expect(stages()).toEqual([]);
});

test("contents of every kind: none, text, pieces as they come", async () => {
  await put(at("empty"), "");
  expect([statSync(at("empty")).size, await fetched(at("empty"))]).toEqual([0, ""]);
  const pieces = async function* () {
    for (const piece of ["ä", Buffer.from("\r\n\n"), new Uint8Array([0, 255])]) yield piece;
  };
  await put(at("pieces"), pieces());
  expect(readFileSync(at("pieces"))).toEqual(Buffer.from([0xc3, 0xa4, 13, 10, 10, 0, 255]));
});

test("a file keeps its rights and its links, or gets those asked for", async () => {
  await put("/workspace/tool", "1", { mode: 0o751 });
  symlinkSync("workspace/tool", at("link"));
  await put(at("link"), "2");
  expect([readlinkSync(at("link")), text("workspace/tool")]).toEqual(["workspace/tool", "2"]);
  expect(statSync(at("workspace/tool")).mode & 0o7777).toBe(0o751);
  await put(at("link"), "3", { mode: 0o4700, owner: `${process.getuid?.()}` });
  expect(statSync(at("workspace/tool")).mode & 0o7777).toBe(0o4700);
});

test("whoever reads while a file is replaced sees the old or the new", async () => {
  const [before, after] = ["a", "b"].map((letter) => letter.repeat(2 * PIECE_BYTES));
  await put(at("replaced"), before ?? "");
  const seen = new Set<string>();
  const replacing = put(at("replaced"), after ?? "").then(() => true);
  while (!(await Promise.race([replacing, nextTurn(false)]))) seen.add(text("replaced"));
  expect([...seen, text("replaced")].every((one) => one === before || one === after)).toBe(true);
  expect(text("replaced")).toBe(after);
});

test("folders travel as tars: new ones as a whole, others are filled and keep what they have", async () => {
  mkdirSync(at("from/deep"), { recursive: true });
  writeFileSync(at("from/deep/one"), "new one");
  writeFileSync(at("from/.two"), "two");
  symlinkSync("deep", at("from/to-deep"));
  const tar = await (await get(at("from"), { format: "tar" })).content(PATIENCE).buffer();
  const names = execFileSync("tar", ["-t"], { input: tar, encoding: "utf8" }).trim().split("\n").sort();
  expect(names).toEqual(["./", "./.two", "./deep/", "./deep/one", "./to-deep"]);
  await put(at("to/new/"), tar, { format: "tar" });
  expect([text("to/new/deep/one"), readlinkSync(at("to/new/to-deep"))]).toEqual(["new one", "deep"]);
  mkdirSync(at("merged/deep"), { recursive: true });
  writeFileSync(at("merged/deep/one"), "old one");
  writeFileSync(at("merged/deep/three"), "three");
  await put(at("merged"), tar, { format: "tar" });
  expect([text("merged/deep/one"), text("merged/deep/three"), text("merged/.two")]).toEqual([
    "new one",
    "three",
    "two",
  ]);
  // What a human would be asked about is refused.
  mkdirSync(at("clash/.two"), { recursive: true });
  await failure(put(at("clash"), tar, { format: "tar" }), "is_a_directory");
  expect([readdirSync(at("clash")), readdirSync(at("merged")).sort(), stages()]).toEqual([
    [".two"],
    [".two", "deep", "to-deep"],
    [],
  ]);
});

test("a folder that is worked in comes without its sockets, and the daemon is given one stream alone", async () => {
  mkdirSync(at("worked-in"));
  writeFileSync(at("worked-in/file"), "kept");
  const server = createServer();
  await once(server.listen(at("worked-in/socket")), "listening");
  const tar = await (await get(at("worked-in"), { format: "tar" })).content(PATIENCE).buffer();
  expect(execFileSync("tar", ["-t"], { input: tar, encoding: "utf8" })).toBe("./\n./file\n");
  const script = toReadScript({ sandboxId: box.sandboxId, path: at("worked-in"), format: "tar" });
  const { status, stderr, stdout } = spawnSync("/bin/bash", ["-c", script], { encoding: "utf8" });
  const said = stdout.split("#complaint ")[1] ?? "";
  expect([status, stderr, Buffer.from(said, "base64").toString()]).toEqual([0, "", expect.stringContaining("socket")]);
  server.close();
});

describe("refused, with nothing left behind", () => {
  test("paths that are not what they should be", async () => {
    writeFileSync(at("file"), "");
    await run(bed.fleet, "exec", { sandboxId: box.sandboxId, command: "mkfifo pipe", cwd: root });
    const failures = [
      await failure(fetched(at("nothing")), "file_not_found"),
      await failure(fetched(root), "is_a_directory"),
      await failure(fetched(at("pipe")), "not_a_file"),
      await failure(fetched(at("file"), { format: "tar" }), "not_a_directory"),
      await failure(put(root, "x"), "is_a_directory"),
      await failure(put(at("pipe"), "x"), "not_a_file"),
      await failure(put(at("file/below"), "x"), "not_a_directory"),
      await failure(put(at("file"), "", { format: "tar" }), "not_a_directory"),
      await failure(put(at("folder"), "no tar", { format: "tar" }), "invalid_input"),
      await failure(put(at("file"), "x", { owner: "no.such.user" }), "invalid_input"),
    ];
    for (const { facts } of failures) expect(facts["path"]).toContain(root);
    expect([text("file"), existsSync(at("folder")), stages()]).toEqual(["", false, []]);
  });

  test("a content over the limit, as soon as that is known", async () => {
    const before = await contentKeys();
    let asked = 0;
    const endless = async function* () {
      for (const piece = Buffer.alloc(16 * PIECE_BYTES); ; asked++) yield piece;
    };
    const { facts, text: said } = await failure(put(at("endless"), endless()), "content_too_large");
    expect([facts["limit"], asked]).toEqual([TRANSFER_LIMIT, 16]);
    expect(said).toContain("compress");
    writeFileSync(at("sparse"), "");
    truncateSync(at("sparse"), TRANSFER_LIMIT + 1);
    expect((await failure(fetched(at("sparse")), "content_too_large")).facts["bytes"]).toBe(TRANSFER_LIMIT + 1);
    expect(await contentKeys()).toEqual(before);
  });

  test("no key, no content, no sandbox, a stream that breaks", async () => {
    const before = await contentKeys();
    const open = bed.client({ secretKey: undefined });
    await failure(open.upload({ sandboxId: box.sandboxId, path: at("x") }, "x"), "not_configured");
    const download = await open.operation((await get(at("empty"))).id);
    await failure(
      download.kind === "download" ? download.content(PATIENCE).buffer() : Promise.reject(),
      "not_configured",
    );
    await failure(put(at("x"), 5 as never), "invalid_input");
    await failure(bed.fleet.upload({ sandboxId: "sbx_0000000000000000", path: "/x" }, "x"), "sandbox_not_found");
    const broken = async function* () {
      yield "x";
      throw new Error("the disk is gone");
    };
    await expect(put(at("x"), broken())).rejects.toThrow("the disk is gone");
    expect((await contentKeys()).length).toBe(before.length + 1);
  });
});

test("an upload that is canceled in the middle leaves nothing", async () => {
  const begun = Promise.withResolvers<void>();
  using _ = watchFolder(workspace, () => begun.resolve());
  const upload = await bed.fleet.upload({ sandboxId: box.sandboxId, path: at("half") }, Buffer.alloc(TRANSFER_LIMIT));
  await begun.promise;
  bed.pve.faults.freeze(box.vmid);
  expect(stages()).toHaveLength(1);
  expect(await upload.cancel()).toBe(true);
  bed.pve.faults.unfreeze(box.vmid);
  await failure(upload.result(PATIENCE), "canceled");
  expect([stages(), existsSync(at("half")), await bed.redis.exists(bed.keys.content(upload.id))]).toEqual([
    [],
    false,
    0,
  ]);
});

function watchFolder(folder: string, seen: () => void): Disposable {
  const watcher = watch(folder, seen);
  return { [Symbol.dispose]: () => watcher.close() };
}

test("what an earlier attempt has left is removed by the one that succeeds", async () => {
  bed.pve.faults.freeze(box.vmid);
  const upload = await bed.fleet.upload({ sandboxId: box.sandboxId, path: at("retried") }, "whole");
  await until(async () => (await upload.status()).step === "sent", "the begin");
  mkdirSync(join(workspace, `.fleet-${upload.id}.dead`));
  bed.pve.faults.unfreeze(box.vmid);
  await upload.result(PATIENCE);
  expect([text("retried"), stages()]).toEqual(["whole", []]);
});

test("a download is cut short by its sandbox's end, and its content is not kept", async () => {
  const other = await provisionOne(bed.fleet);
  bed.pve.faults.freeze(other.vmid);
  const download = await bed.fleet.download({ sandboxId: other.sandboxId, path: "/etc/passwd" });
  const upload = await bed.fleet.upload({ sandboxId: other.sandboxId, path: "/workspace/x" }, "x");
  await until(async () => (await upload.status()).step === "sent", "the begin");
  await run(bed.fleet, "destroy", { sandboxId: other.sandboxId });
  await failure(download.content(PATIENCE).buffer(), "sandbox_gone");
  await failure(upload.result(PATIENCE), "sandbox_gone");
  expect(await bed.redis.exists(bed.keys.content(download.id), bed.keys.content(upload.id))).toBe(0);
});

test("an execd that has no /files is given the content in pieces", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { template: "old-execd" });
  const content = randomBytes(250_000);
  const path = join(containerOf(bed, vmid)?.root ?? "", "content");
  const upload = await bed.fleet.upload({ sandboxId, path }, content);
  await upload.result(PATIENCE);
  expect(readFileSync(path).equals(content)).toBe(true);
  expect(readdirSync("/var/tmp").filter((name) => name.includes(upload.id))).toEqual([]);
});

test("the same key is the same content", async () => {
  const options = { idempotencyKey: "file" };
  const input = { sandboxId: box.sandboxId, path: at("once") };
  const first = await bed.fleet.upload(input, "content", options);
  await first.result(PATIENCE);
  const second = await bed.fleet.upload(input, Buffer.from("content"), options);
  expect(second.id).toBe(first.id);
  await failure(bed.fleet.upload(input, "other", options), "idempotency_conflict");
  expect((await contentKeys()).filter((key) => !key.endsWith(first.id))).toEqual(await contentKeys());
});
