/** The packed package, installed into an empty project, as a backend uses it: on each runtime that it is made for. */
import { execFile } from "node:child_process";
import { existsSync, globSync } from "node:fs";
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Bed, startBed } from "../integration/fleet/harness.ts";

const run = promisify(execFile);
const ROOT = join(import.meta.dirname, "../..");
const BIN = join(ROOT, "node_modules/.bin");

/** npm package and binary of each runtime. */
const RUNTIMES = {
  "Node 20": { install: "node@20", binary: "node" },
  "Node 22": { install: "node@22", binary: "node" },
  "Node 24": { install: "node@24", binary: "node" },
  Bun: { install: "bun@1", binary: "bun" },
} as const;

/** Packages that only workers use. */
const WORKER_ONLY = [
  "ssh2",
  "undici",
  "ipaddr.js",
  "fastify",
  "pino",
  "bullmq-otel",
  "@opentelemetry/sdk-trace",
  "@bull-board/api",
  "@bull-board/ui",
  "@bull-board/fastify",
];

let folder: string;
let tarball: string;
let project: string;
let bed: Bed;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "fleet-package-"));
  const packed = await run("npm", ["pack", "--pack-destination", folder], { cwd: ROOT });
  tarball = join(folder, packed.stdout.trim().split("\n").at(-1) ?? "");
  project = join(folder, "project");
  await mkdir(project);
  await writeFile(join(project, "package.json"), JSON.stringify({ name: "backend", private: true, type: "module" }));
  await npmInstall(project, tarball);
  for (const example of globSync("examples/*.ts", { cwd: ROOT })) await toPlainJs(example);
  bed = await startBed();
}, 300_000);

afterAll(async () => {
  await bed?.close();
  await rm(folder, { recursive: true, force: true });
});

const npmInstall = (cwd: string, ...what: string[]) =>
  run("npm", ["install", "--no-audit", "--no-fund", "--loglevel=error", ...what], { cwd });

/** Node 20 runs no TypeScript: what a user's build would make of an example. */
async function toPlainJs(example: string): Promise<void> {
  const options = [
    "--module",
    "nodenext",
    "--target",
    "es2022",
    "--types",
    "node",
    "--typeRoots",
    join(ROOT, "node_modules/@types"),
  ];
  await cp(join(ROOT, example), join(project, basename(example)));
  await run(
    join(BIN, "tsc"),
    ["--ignoreConfig", ...options, "--strict", "--skipLibCheck", "false", basename(example)],
    {
      cwd: project,
    },
  );
}

const env = () => ({ ...process.env, ...bed.env, NODE_OPTIONS: "" });

test("the package and its types are as consumers' tools want them", async () => {
  await run(join(BIN, "publint"), ["run", tarball, "--strict"], { cwd: ROOT });
  await run(join(BIN, "attw"), [tarball, "--profile", "esm-only", "--no-definitely-typed", "--no-emoji"], {
    cwd: ROOT,
  });
});

test("what only workers need is not installed, and the repository's manifest is as before", async () => {
  expect(existsSync(join(project, "node_modules/bullmq"))).toBe(true);
  for (const name of WORKER_ONLY)
    expect([name, existsSync(join(project, "node_modules", name))]).toEqual([name, false]);
  expect(await readFile(join(ROOT, "package.json"), "utf8")).toContain('"devDependencies"');
  const installed = join(project, "node_modules/sandbox-fleet");
  expect(globSync("dist/*", { cwd: installed }).sort()).toEqual(["dist/producers", "dist/shared"]);
});

describe.each(Object.entries(RUNTIMES))("on %s", (_, { install, binary }) => {
  let runtime: string;

  beforeAll(async () => {
    const home = join(folder, install.replace("@", "-"));
    await mkdir(home);
    await writeFile(join(home, "package.json"), '{"name":"runtime","private":true}');
    await npmInstall(home, install);
    runtime = join(home, "node_modules/.bin", binary);
  }, 120_000);

  const start = (...words: string[]) => run(runtime, words, { cwd: project, env: env(), timeout: 60_000 });

  test("every example runs", async () => {
    expect((await start("job-schemas.js")).stdout).toContain("provision: Clone a template");
    const { stdout } = await start("provision-and-exec.js");
    expect(stdout).toMatch(/sbx_\w+ runs on pve\d: http/);
    expect(stdout).toContain("exit code 0: hello from ");
    expect(stdout).toContain("destroyed");
    expect((await start("cmux-client.js")).stdout).toMatch(
      /vscode at http.*\nexit code 0: hello from .*\nstopped, without/,
    );
    expect((await start("follow-events.js")).stdout).toContain("operation.succeeded");
  });

  test("the command answers", async () => {
    const cli = join(project, "node_modules/sandbox-fleet/dist/producers/cli/main.js");
    expect((await start(cli, "--help")).stdout).toContain("fleet provision cmux-base");
    expect(JSON.parse((await start(cli, "ls", "--json")).stdout)).toEqual([]);
  });
});
