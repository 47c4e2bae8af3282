import { defineConfig } from "vitest/config";

/** They compare times, so they want a machine that does little else. */
const MEASURING = [
  "test/integration/expiry.test.ts",
  "test/integration/fleet/latency.test.ts",
  "test/integration/pve-client/task-watcher.test.ts",
];
/** In Chromium, which takes both cores for itself. */
const BROWSER = ["test/integration/ops/pages.test.ts", "test/integration/gate/browser.test.ts"];
const KILL = ["kill", "batch", "claims", "reconcile", "ttl"].map((name) => `test/integration/kill/${name}.test.ts`);

/** A fleet and a stand-in in each file, on one Redis. Each counts what it leaves behind, so files may share their imports. */
const onRedis = {
  globalSetup: ["test/global-redis.ts"],
  // They wait for events: only what will never come takes that long.
  testTimeout: 120_000,
  hookTimeout: 120_000,
  expect: { poll: { timeout: 30_000 } },
  isolate: false,
};

// `npm test` runs all but `browser`, `kill`, `chaos`, `scale`, `deploy` and `package`, which have commands of their own. Groups run one after another: vitest asks
// for that where their numbers of workers differ, which depends on the machine's cores.
export default defineConfig({
  test: {
    projects: [
      // Pure parts: no server, no child process; a unit test that takes five seconds is none.
      {
        test: {
          name: "unit",
          // Pure parts share nothing, so the files may share their imports: half the time.
          isolate: false,
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
          include: ["test/unit/**/*.test.ts"],
          testTimeout: 5_000,
        },
      },
      // What must not compile: each test runs tsc on a fixture and expects its errors.
      {
        test: { name: "types", sequence: { groupOrder: 1 }, include: ["test/types/**/*.test.ts"], testTimeout: 60_000 },
      },
      {
        test: {
          ...onRedis,
          name: "integration",
          include: ["test/integration/**/*.test.ts", "test/pve/**/*.test.ts"],
          exclude: [...MEASURING, ...KILL, ...BROWSER],
          // They mostly wait, for locks to run out and for tasks: two cores are busy with four of them.
          maxWorkers: 4,
          sequence: { groupOrder: 2 },
        },
      },
      {
        test: { ...onRedis, name: "timing", include: MEASURING, maxWorkers: 2, sequence: { groupOrder: 3 } },
      },
      {
        test: { ...onRedis, name: "browser", include: BROWSER, maxWorkers: 1, sequence: { groupOrder: 9 } },
      },
      {
        test: { ...onRedis, name: "kill", include: KILL, sequence: { groupOrder: 4 } },
      },
      // The packed package in an empty project, on each runtime.
      {
        test: {
          name: "package",
          include: ["test/package/**/*.test.ts"],
          globalSetup: ["test/global-redis.ts"],
          testTimeout: 120_000,
          hookTimeout: 300_000,
          sequence: { groupOrder: 6 },
        },
      },
      // Thousands of containers and sandboxes.
      { test: { ...onRedis, name: "scale", include: ["test/scale/**/*.test.ts"], sequence: { groupOrder: 7 } } },
      // Debian's programs judge what is in deploy/.
      {
        test: {
          name: "deploy",
          include: ["test/deploy/**/*.test.ts"],
          testTimeout: 60_000,
          sequence: { groupOrder: 8 },
        },
      },
      {
        test: {
          name: "chaos",
          sequence: { groupOrder: 5 },
          include: ["test/chaos/**/*.test.ts"],
          testTimeout: 300_000,
        },
      },
    ],
  },
});
