import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    projects: [
      // Pure parts: no server, no child process; a unit test that takes five seconds is none.
      {
        test: {
          name: "unit",
          // Pure parts share nothing, so the files may share their imports: half the time.
          isolate: false,
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
          name: "integration",
          include: ["test/integration/**/*.test.ts", "test/pve/**/*.test.ts"],
          globalSetup: ["test/global-redis.ts"],
          testTimeout: 60_000,
          hookTimeout: 60_000,
          // Each file runs a fleet and a stand-in; more at once on two cores and timings mean nothing. Groups run one after
          // another: vitest asks for that where their numbers of workers differ, which depends on the machine's cores.
          maxWorkers: 2,
          sequence: { groupOrder: 2 },
        },
      },
      // Alone: it loads the machine, and the tests before it measure time.
      {
        test: {
          name: "chaos",
          sequence: { groupOrder: 3 },
          include: ["test/chaos/**/*.test.ts"],
          testTimeout: 300_000,
        },
      },
    ],
  },
});
