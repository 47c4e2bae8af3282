import { describe, expect, expectTypeOf, test } from "vitest";
import { resolveSandbox } from "../../../producers/cli/resolve-sandbox.ts";
import {
  assertRepeatable,
  createFleet,
  createFleetFromEnv,
  type ExecHandle,
  type Fleet,
  type Handle,
} from "../../../producers/index.ts";
import { splitSecrets } from "../../../producers/split-secrets.ts";
import { FleetError } from "../../../shared/errors.ts";
import { SandboxId } from "../../../shared/ids.ts";
import { checkRanges } from "../../../shared/jobs/check-ranges.ts";
import type { SandboxRecord } from "../../../shared/state/records.ts";

const codeOf = (run: () => unknown): unknown => {
  try {
    return run();
  } catch (error) {
    return error instanceof FleetError ? [error.code, error.facts["fields"]] : error;
  }
};

describe("assertRepeatable", () => {
  test("one sandbox may have anything; many what differs by itself", () => {
    const fixed = { template: "base", network: { ip: "10.0.0.5/24" } };
    expect(codeOf(() => assertRepeatable(fixed, 1))).toBeUndefined();
    const lease = { template: "base", hostname: "ci-{vmid}", network: { ip: "lease", ip6: "auto" } } as const;
    expect(codeOf(() => assertRepeatable(lease, 20))).toBeUndefined();
  });

  test("a fixed address, MAC or name is refused, with the way out", () => {
    const input = {
      template: "base",
      hostname: "web",
      network: { ip: "10.0.0.5/24", ip6: "fd00::5/64", hwaddr: "BC:24:11:00:00:01" },
    };
    expect(codeOf(() => assertRepeatable(input, 2))).toEqual([
      "invalid_input",
      ["network.ip", "network.ip6", "network.hwaddr", "hostname"],
    ]);
    expect(() => assertRepeatable(input, 2)).toThrow('ip: "lease"');
  });
});

describe("checkRanges", () => {
  const v1 = { name: "old", online: true, cgroup: 1 } as const;
  const v2 = { name: "new", online: true, cgroup: 2 } as const;
  const refused = ["invalid_input", ["cpuunits"]];

  test.each([
    ["above v2", { cpuunits: 10_001 }, [v2], refused],
    ["v2's most", { cpuunits: 10_000 }, [v2], undefined],
    ["v2's least", { cpuunits: 1 }, [v2], undefined],
    ["below v1", { cpuunits: 1 }, [v1], refused],
    ["v1's most", { cpuunits: 500_000 }, [v1], undefined],
    ["fits one of two nodes", { cpuunits: 20_000 }, [v1, v2], undefined],
    ["does not fit the node asked for", { cpuunits: 20_000, node: "new" }, [v1, v2], refused],
    ["fits only a node that is off", { cpuunits: 20_000 }, [{ ...v1, online: false }, v2], refused],
    ["no node known", { cpuunits: 500_000 }, [], undefined],
    ["an unknown node asked for", { cpuunits: 500_000, node: "far" }, [v2], undefined],
    ["nothing to check", {}, [v2], undefined],
  ])("%s", (_, input, nodes, outcome) => expect(codeOf(() => checkRanges(input, nodes))).toEqual(outcome));
});

test("splitSecrets: what the kind's spec calls secret is sealed, the rest is stored", () => {
  expect(splitSecrets("exec", { command: "ls", env: { A: "1" } })).toEqual({
    stored: { command: "ls" },
    secrets: { env: { A: "1" } },
  });
  expect(splitSecrets("exec", { command: "ls", env: {} })).toEqual({ stored: { command: "ls" }, secrets: undefined });
  expect(splitSecrets("power", { action: "stop" }).secrets).toBeUndefined();
});

describe("options", () => {
  test("every bad one is named, none with its value", () => {
    const bad = { redis: "http://secret-host", prefix: "fleet", team: "a b", secretKey: "hunter2" };
    let error: unknown;
    try {
      createFleet(bad);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toMatchObject({
      code: "not_configured",
      facts: { options: ["redis", "prefix", "team", "secretKey"] },
    });
    expect(String(error)).not.toMatch(/hunter2|secret-host|a b/);
  });

  test("from an environment", async () => {
    expect(() => createFleetFromEnv({})).toThrow("REDIS_URL is missing");
    await using fleet = createFleetFromEnv({ REDIS_URL: "redis://127.0.0.1:1", FLEET_TEAM: "red" });
    expect(fleet.team).toBe("red");
  });

  test("making a client connects to nothing, so closing it is at once", async () => {
    const fleet = createFleet({ redis: "redis://127.0.0.1:1" });
    await fleet.close();
    await expect(fleet.sandboxes.list()).rejects.toMatchObject({ code: "shutting_down" });
  });
});

describe("resolveSandbox", () => {
  const id = (n: number) => SandboxId.parse(`sbx_${String(n).padStart(16, "0")}`);
  const known = [
    { id: id(1), vmid: 20_001, hostname: "a" },
    { id: id(2), vmid: 20_002, hostname: "twice" },
    { id: id(3), vmid: 20_003, hostname: "twice" },
  ] as SandboxRecord[]; // the fields that matter here
  const sandboxes = { list: async () => known };

  test("by id, VMID or hostname", async () => {
    expect(await resolveSandbox(id(9), sandboxes)).toBe(id(9));
    expect(await resolveSandbox("20001", sandboxes)).toBe(id(1));
    expect(await resolveSandbox("a", sandboxes)).toBe(id(1));
  });

  test("what is not known or not clear is refused", async () => {
    await expect(resolveSandbox("b", sandboxes)).rejects.toMatchObject({ code: "sandbox_not_found" });
    await expect(resolveSandbox("twice", sandboxes)).rejects.toMatchObject({
      code: "invalid_input",
      facts: { sandboxes: [id(2), id(3)] },
    });
  });
});

test("each kind's method has its own input and result", () => {
  expectTypeOf<Fleet["exec"]>().returns.resolves.toEqualTypeOf<ExecHandle>();
  expectTypeOf<Fleet["expose"]>().returns.resolves.toEqualTypeOf<Handle<"expose">>();
  expectTypeOf<Awaited<ReturnType<Handle<"exec">["result"]>>["exitCode"]>().toEqualTypeOf<number>();
  expectTypeOf<Parameters<Fleet["hide"]>[0]>().toEqualTypeOf<{ sandboxId: string; name: string }>();
});
