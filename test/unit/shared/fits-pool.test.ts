import { expect, test } from "vitest";
import { poolOf } from "../../../shared/jobs/fits-pool.ts";
import { parseInput } from "../../../shared/jobs/index.ts";

const of = (input: object) => poolOf(parseInput("provision", { template: "cmux-base", ...input }));

test("what is kept in records or done in the running container is no hindrance", () => {
  const input = {
    instanceId: "pvelxc-1a2b3c4d",
    metadata: { app: "web" },
    setup: ["true"],
    services: [{ name: "web", port: 8_000 }],
    ttlSeconds: 60,
    ttlAction: "stop",
    idleSeconds: 600,
    wakeOnHttp: true,
    priority: "batch",
  };
  expect(of({})).toBe("cmux-base");
  expect(of(input)).toBe("cmux-base");
  expect(poolOf(parseInput("provision", { template: 9_001 }))).toBe("9001");
});

test("what is as if it had been left out is no hindrance either", () => {
  expect(of({ clone: "linked" })).toBe("cmux-base");
  expect(of({ waitFor: "execd" })).toBe("cmux-base");
});

test.each([
  { cores: 2 },
  { memoryMib: 2_048 },
  { node: "pve1" },
  { hostname: "box-{vmid}" },
  { clone: "full" },
  { waitFor: "address" },
])("%o changes the container's configuration, or where it stands", (input) => {
  expect(of(input)).toBeUndefined();
});
