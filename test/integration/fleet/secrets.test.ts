/** Secrets: what is planted must come out in the container, and nowhere else. */
import { createHash } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "vitest";
import { dump } from "./dump.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed } from "./harness.ts";
import type { WorkerProcess } from "./worker-process.ts";

let bed: Bed;
let worker: WorkerProcess;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 1 }, workers: "none", env: { LOG_LEVEL: "trace" } });
  worker = await bed.startProcess();
});
afterAll(() => bed.close());

test("env and stdin reach setup and exec; both, exec token and PVE token are in no key, log or request in clear", async () => {
  const planted = {
    OF_SANDBOX: "planted-0f5a-sandbox",
    OF_EXEC: "planted-77c1-exec",
    OF_FAILED: "planted-e10b-failed",
    OF_STDIN: "planted-5d30-stdin",
    OF_FILE: "planted-91d2-content",
  };
  const provision = await bed.fleet.provision({
    template: "cmux-base",
    env: { OF_SANDBOX: planted.OF_SANDBOX },
    setup: ['test "$OF_SANDBOX" = planted-0f5a-"sandbox"'],
  });
  const { sandboxId, vmid } = await provision.result({ timeoutMs: 60_000 });
  const long = await bed.fleet.exec({
    sandboxId,
    command: 'printf %s "$OF_SANDBOX$OF_EXEC$(cat)" | wc -c; until test -e go; do read -t 0.02 < <(:) || true; done',
    env: { OF_EXEC: planted.OF_EXEC },
    stdin: planted.OF_STDIN,
  });
  const failing = await bed.fleet.provision({
    template: "cmux-base",
    env: { OF_FAILED: planted.OF_FAILED },
    setup: ["exit 9"],
  });
  await failure(failing.result({ timeoutMs: 60_000 }), "setup_failed");
  const upload = await bed.fleet.upload({ sandboxId, path: "/workspace/file" }, planted.OF_FILE);
  await upload.result({ timeoutMs: 60_000 });
  const download = await bed.fleet.download({ sandboxId, path: "/workspace/file" });
  await download.result({ timeoutMs: 60_000 });
  const secrets = {
    ...planted,
    ofStdinInBase64: Buffer.from(planted.OF_STDIN).toString("base64"),
    execToken: containerOf(bed, vmid)?.tokenInForce ?? "",
    pveToken: bed.pve.token.split("=")[1] ?? "",
    secretKey: String(bed.env["FLEET_SECRET_KEY"]),
    // A short content could be guessed by it.
    hashOfFile: createHash("sha256").update(planted.OF_FILE).digest("hex"),
  };
  for (const [name, secret] of Object.entries(secrets)) expect(secret.length, name).toBeGreaterThan(16);
  const during = await dump(bed.redis);
  await run(bed.fleet, "exec", { sandboxId, command: "touch go" });
  const { stdout } = await long.result({ timeoutMs: 60_000 });
  expect(Number(stdout)).toBe([planted.OF_SANDBOX, planted.OF_EXEC, planted.OF_STDIN].join("").length);
  const after = await dump(bed.redis);
  expect((await download.content().buffer()).toString()).toBe(planted.OF_FILE);
  await run(bed.fleet, "destroy", { sandboxId });
  const places = {
    "Redis while it runs": during,
    "Redis after it": after,
    "the worker's log": worker.output(),
    "PVE's request log": JSON.stringify(bed.pve.log()),
    "PVE's task list": JSON.stringify(bed.pve.tasks()),
  };
  // The dump sees what is there: ids are.
  expect(during).toContain(sandboxId);
  expect(worker.output()).toContain(provision.id);
  for (const [place, text] of Object.entries(places)) {
    for (const [name, secret] of Object.entries(secrets)) {
      // The hookscript reads the exec token from the description, so that PVE is told it.
      if (name === "execToken" && place === "PVE's request log") continue;
      expect(text.includes(secret), `${name} in ${place}`).toBe(false);
    }
  }
});

test("another key can't open them, and says which variable it is about", async () => {
  const { sandboxId } = await provisionOne(bed.fleet);
  await worker.end("SIGTERM");
  const other = await bed.startProcess({ FLEET_SECRET_KEY: "11".repeat(32) });
  const handle = await bed.fleet.exec({ sandboxId, command: "true" });
  const error = await failure(handle.result({ timeoutMs: 60_000 }), "not_configured");
  expect(error.facts).toMatchObject({ variables: ["FLEET_SECRET_KEY"] });
  await other.end("SIGTERM");
  // Rotated: the new one seals, the old one still opens.
  await bed.startProcess({ FLEET_SECRET_KEY: `${"11".repeat(32)},${bed.env["FLEET_SECRET_KEY"]}` });
  expect(await run(bed.fleet, "exec", { sandboxId, command: "true" })).toMatchObject({ exitCode: 0 });
});
