/** What can be provisioned: PVE's templates, and those that the fleet made of sandboxes. */
import type { NodeName, SandboxId, TeamId, Vmid } from "../shared/ids.ts";
import { loadInventory, type Replica } from "../shared/state/inventory.ts";
import { loadCopies, loadTemplates } from "../shared/state/templates.ts";
import type { Parts } from "./parts.ts";
import type { Sandboxes } from "./sandboxes.ts";

export interface TemplateView {
  /** Of one that the fleet made; `provision` takes it, and `destroy` as a sandbox's. */
  id: SandboxId | undefined;
  name: string;
  version: string | undefined;
  tags: readonly string[];
  node: NodeName;
  vmid: Vmid;
  /** "" where its node could never be asked. */
  storage: string;
  diskBytes: number;
  memoryMib: number;
  /** Its node can be asked now. */
  online: boolean;
  /** Whose it is; everybody's when absent. */
  team: TeamId | undefined;
  /** The sandbox that it was made of. */
  source: SandboxId | undefined;
  /** VMID of the template that the fleet made it a replica of. */
  copyOf: Vmid | undefined;
  /** ms since the epoch. */
  createdAt: number | undefined;
}

export interface Templates {
  /**
   * One entry a PVE template, the fleet's own first. Of a client of one team: that team's, and those that are
   * everybody's. The latter are as workers last saw them; none before any worker has.
   */
  list(): Promise<TemplateView[]>;
}

export function createTemplates(parts: Parts, sandboxes: Sandboxes): Templates {
  return {
    async list() {
      const [own, inventory] = await Promise.all([
        sandboxes.list({ state: "template" }),
        parts.link.request((redis) => loadInventory(redis, parts.keys)),
      ]);
      const teams = [...new Set(own.map(({ team }) => team))];
      const templates = await parts.link.request((redis) =>
        Promise.all(teams.map((team) => loadTemplates(redis, parts.keys, team, parts.passOver))),
      );
      const copies = await parts.link.request((redis) => loadCopies(redis, parts.keys, parts.passOver));
      const seen = inventory?.replicas ?? [];
      const made = own.flatMap((sandbox): TemplateView[] => {
        const template = templates.flat().find(({ id }) => id === sandbox.id);
        if (!template) return []; // deleted between the two reads
        const { id, team, version, source } = sandbox;
        const replica = seen.find(({ owner }) => owner?.sandbox === id) ?? template.replica;
        return [{ ...toView(replica), id, team, version, source, createdAt: template.createdAt }];
      });
      const copied = own.flatMap((sandbox): TemplateView[] => {
        const copy = copies.find(({ id }) => id === sandbox.id);
        if (!copy) return [];
        const replica = seen.find(({ owner }) => owner?.sandbox === sandbox.id) ?? copy.replica;
        return [{ ...toView(replica), id: sandbox.id, team: sandbox.team, createdAt: copy.createdAt }];
      });
      return [...made, ...copied, ...seen.filter(({ owner }) => owner === undefined).map(toView)];
    },
  };
}

function toView({ name, tags, node, vmid, storage, diskBytes, memoryMib, online, copyOf }: Replica): TemplateView {
  const unknown = { id: undefined, version: undefined, team: undefined, source: undefined, createdAt: undefined };
  return { ...unknown, name, tags, node, vmid, storage, diskBytes, memoryMib, online, copyOf: copyOf?.vmid };
}
