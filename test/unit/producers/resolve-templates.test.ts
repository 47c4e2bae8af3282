import { expect, test } from "vitest";
import { resolveTemplates } from "../../../producers/cli/resolve-templates.ts";
import type { TemplateView } from "../../../producers/index.ts";
import { FleetError } from "../../../shared/errors.ts";
import { NodeName, SandboxId, Vmid } from "../../../shared/ids.ts";

const A = SandboxId.parse("sbx_aaaaaaaaaaaaaaa1");
const B = SandboxId.parse("sbx_aaaaaaaaaaaaaaa2");
const C = SandboxId.parse("sbx_aaaaaaaaaaaaaaa3");

function template(vmid: number, name: string, node: string, more: Partial<TemplateView> = {}): TemplateView {
  const kept = { id: undefined, version: undefined, team: undefined, source: undefined, copyOf: undefined };
  const seen = { tags: [], storage: "ceph", diskBytes: 0, memoryMib: 0, online: true, createdAt: undefined };
  return { ...kept, ...seen, name, node: NodeName.parse(node), vmid: Vmid.parse(vmid), ...more };
}

const copyOf = Vmid.parse(20_000);
const TEMPLATES = [
  template(20_000, "app", "pve1", { id: A, version: "3" }),
  template(20_001, "app", "pve2", { id: B, copyOf }),
  template(20_002, "base", "pve2", { id: C, copyOf: Vmid.parse(9_001) }),
  template(9_001, "base", "pve1"),
  template(9_002, "plain", "pve1"),
];
const find = (text: string, all = false) => resolveTemplates(text, TEMPLATES, { all });

test("an id, a VMID or a version is one template, however many share its name", () => {
  expect(find(B)).toEqual([B]);
  expect(find("20001")).toEqual([B]);
  expect(find("app:3")).toEqual([A]);
});

test("several with one name are told with VMID, node and what they are; --all takes the fleet's own", () => {
  const candidates =
    "app could be 20000 on pve1 (version 3) or 20001 on pve2 (a replica of 20000); give the VMID, or --all";
  expect(() => find("app")).toThrow(candidates);
  expect(find("app", true)).toEqual([A, B]);
  // Whoever names the original does not mean its replica.
  expect(() => find("base")).toThrow("20002 on pve2 (a replica of 9001) or 9001 on pve1 (not the fleet's)");
  expect(find("base", true)).toEqual([C]);
});

test.each([
  ["plain", "the fleet made no template plain, only PVE has 9002 on pve1"],
  ["9001", "the fleet made no template 9001"],
  ["app:4", "there is no template app:4; fleet template ls lists all"],
])("%s is none that the fleet made", (text, problem) => {
  for (const all of [false, true]) {
    expect(() => find(text, all)).toThrow(problem);
    expect(() => find(text, all)).toThrow(FleetError);
  }
});
