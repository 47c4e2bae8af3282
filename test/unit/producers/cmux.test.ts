/** What the cmux interface makes of snapshot ids and host ids. */
import { pathToFileURL } from "node:url";
import { describe, expect, test } from "vitest";
import { createCmuxClient } from "../../../producers/cmux/index.ts";
import { toPublicUrl } from "../../../producers/cmux/services.ts";
import { resolveTemplate, type Snapshots } from "../../../producers/cmux/snapshots.ts";

const versions = [
  { version: 1, snapshotId: "snapshot_3c251d7c", templateVmid: 9_001, capturedAt: "2026-01-01T00:00:00Z" },
  { version: 2, snapshotId: "pvelxc_base_v2", templateVmid: 9_002, capturedAt: "2026-01-02T00:00:00Z" },
];
const manifestOf = (list: unknown) =>
  ({ presets: [{ presetId: "small", label: "Small", versions: list }] }) as Snapshots;
const resolve = (snapshotId: string | undefined, snapshots?: Snapshots, templateVmid?: number) =>
  resolveTemplate({ snapshotId, templateVmid }, snapshots);

describe("a snapshot id", () => {
  test("is looked up in the manifest or asked of the function; what is the fleet's own, or a name, stays", async () => {
    const manifest = manifestOf(versions);
    expect(await resolve("snapshot_3c251d7c", manifest)).toBe(9_001);
    expect(await resolve("pvelxc_base_v2", manifest)).toBe(9_002);
    expect(await resolve("snapshot_3c251d7c", manifest, 9_003)).toBe(9_003);
    expect(await resolve("snapshot_3c251d7c", async () => ({ templateVmid: 9_004 }))).toBe(9_004);
    expect(await resolve("snapshot_3c251d7c", () => "cmux-base")).toBe("cmux-base");
    for (const own of ["snap_0000000000000000", "sbx_0000000000000000"])
      expect(await resolve(own, () => expect.fail("asked of the function"))).toBe(own);
    expect(await resolve("cmux-base", manifest)).toBe("cmux-base");
    expect(await resolve("cmux-base")).toBe("cmux-base");
  });

  test.each<[string, string | undefined, Snapshots | undefined, string, string]>([
    ["that is missing", undefined, undefined, "invalid_input", "snapshotId: is missing; give it, or templateVmid"],
    ["without a manifest", "snapshot_1", undefined, "invalid_input", "the client was made without one"],
    ["that the manifest does not know", "snapshot_1", manifestOf(versions), "invalid_input", "is not in the manifest"],
    [
      "of a wrong VMID",
      "a",
      manifestOf([{ ...versions[0], templateVmid: "9001" }]),
      "not_configured",
      "snapshots: presets.0.versions.0.templateVmid: must be a number",
    ],
    [
      "of a manifest without presets",
      "a",
      {} as Snapshots,
      "not_configured",
      "snapshots: presets: is missing; must be an array",
    ],
    [
      "that stands for two",
      "a",
      manifestOf([versions[0], { ...versions[0], templateVmid: 9_009 }]),
      "not_configured",
      "snapshot_3c251d7c stands for both 9001 and 9009",
    ],
    [
      "of a file that is not there",
      "a",
      "/nowhere/snapshots.json",
      "not_configured",
      "snapshots: /nowhere/snapshots.json can't be read",
    ],
    ["of a file that is no JSON", "a", pathToFileURL(import.meta.filename), "not_configured", "is no JSON"],
    [
      "that the function makes nothing of",
      "a",
      () => ({ templateVmid: 1 }),
      "not_configured",
      "must give { templateVmid } for a",
    ],
  ])("%s says what is wrong", async (_, snapshotId, snapshots, code, says) => {
    await expect(resolve(snapshotId, snapshots)).rejects.toMatchObject({ code, text: expect.stringContaining(says) });
  });
});

test("a public URL is told where the pattern's parts are known, and none else", () => {
  const byId = { publicDomain: "s.example.com", pattern: "port-{port}-{id}.{domain}" };
  expect(toPublicUrl(39_378, " PVELXC_1a2b", byId)).toBe("https://port-39378-pvelxc-1a2b.s.example.com");
  const byVmid = { publicDomain: "s.example.com", pattern: "{service}-{vmid}.{domain}" };
  expect(toPublicUrl(39_376, "cmux-20001", byVmid)).toBe("https://worker-20001.s.example.com");
  expect(toPublicUrl(39_376, "20001", byVmid)).toBe("https://worker-20001.s.example.com");
  expect(toPublicUrl(39_376, "pvelxc-1a2b", byVmid)).toBeNull();
  expect(toPublicUrl(8_080, "20001", byVmid)).toBeNull();
  expect(toPublicUrl(39_376, "20001", { ...byVmid, publicDomain: undefined })).toBeNull();
});

test("a client is made from options or the environment, and says what they lack", async () => {
  const env = { REDIS_URL: "redis://127.0.0.1:1", PVE_PUBLIC_DOMAIN: "no domain" };
  expect(() => createCmuxClient({ env })).toThrow("PVE_PUBLIC_DOMAIN must be a domain name");
  expect(() => createCmuxClient({ env: {} })).toThrow("REDIS_URL");
  await createCmuxClient({ redis: "redis://127.0.0.1:1", env: {}, publicDomain: "s.example.com" }).close();
});
