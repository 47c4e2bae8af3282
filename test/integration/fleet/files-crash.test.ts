/** A worker that dies in the middle of an upload: another one begins anew, and nothing of the first try is left. */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readdirSync, readFileSync, watch } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Bed, containerOf, provisionOne, startBed } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 1 }, workers: "none" });
});
afterAll(() => bed.close());

test("an upload whose worker is killed is whole in the end", async () => {
  const first = await bed.startProcess();
  const { sandboxId, vmid } = await provisionOne(bed.fleet);
  const workspace = join(containerOf(bed, vmid)?.root ?? "", "workspace");
  const content = randomBytes(16_777_216);
  const watcher = watch(workspace);
  const staged = once(watcher, "change");
  const upload = await bed.fleet.upload({ sandboxId, path: join(workspace, "there") }, content);
  await staged;
  watcher.close();
  bed.pve.faults.freeze(vmid);
  expect(readdirSync(workspace)).toEqual([expect.stringMatching(/^\.fleet-/)]);
  await first.end("SIGKILL");
  bed.pve.faults.unfreeze(vmid);
  await bed.startProcess();
  await upload.result({ timeoutMs: 60_000 });
  expect(readFileSync(join(workspace, "there")).equals(content)).toBe(true);
  expect(readdirSync(workspace)).toEqual(["there"]);
});
