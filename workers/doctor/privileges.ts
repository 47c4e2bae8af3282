/** Each privilege that a call of ours needs: docs/operations.md shows it, README's role has it, the doctor looks for it. */

/** What it must be held on. */
export type Place =
  | "sandboxes"
  | "templates"
  | "storages"
  | "storages for replicas"
  | "bridges"
  | "the pool"
  | "nodes"
  | "/";

export interface Privilege {
  name: string;
  on: Place;
  /** What is so without it. */
  lost: string;
  /** Without it the fleet does not do what it is for: a problem rather than a warning. */
  vital: boolean;
  /** Since which PVE; before that nothing asks for it, and no role can have it. */
  since?: number;
}

const vital = (name: string, on: Place, lost: string): Privilege => ({ name, on, lost, vital: true });
const useful = (name: string, on: Place, lost: string): Privilege => ({ name, on, lost, vital: false });

export const PRIVILEGES: readonly Privilege[] = [
  vital("VM.Allocate", "sandboxes", "no sandbox is made or destroyed"),
  vital("VM.Audit", "sandboxes", "no sandbox is seen"),
  vital("VM.Clone", "sandboxes", "no sandbox is branched or made from a snapshot"),
  vital("VM.Config.CPU", "sandboxes", "no cores are set"),
  vital("VM.Config.Disk", "sandboxes", "no disk grows"),
  vital("VM.Config.Memory", "sandboxes", "no memory is set"),
  vital("VM.Config.Network", "sandboxes", "no host name, network or firewall is set"),
  vital("VM.Config.Options", "sandboxes", "no exec token is handed in, and no notes tell whose a container is"),
  vital("VM.PowerMgmt", "sandboxes", "nothing is started or stopped"),
  vital("VM.Snapshot", "sandboxes", "no snapshot is taken, restored or deleted"),
  useful("VM.Migrate", "sandboxes", "no sandbox is moved to another node"),
  vital("VM.Audit", "templates", "no template is seen"),
  vital("VM.Clone", "templates", "nothing is cloned"),
  useful("VM.Backup", "templates", "no replica is made by way of an archive"),
  vital("Datastore.AllocateSpace", "storages", "no disk is made"),
  vital("Datastore.Audit", "storages", "types and room of storages are not seen"),
  useful("Datastore.AllocateSpace", "storages for replicas", "no replica comes to another node that way"),
  { ...vital("SDN.Use", "bridges", "no container is put on the bridge"), since: 8 },
  useful("Pool.Audit", "the pool", "what is in the pool is not seen"),
  useful("Pool.Allocate", "the pool", "nothing is adopted into the pool"),
  useful("Sys.Audit", "nodes", "sizes, search domains, clocks, stale locks and a node's orderly shutdown are not seen"),
  useful("Sys.Audit", "/", "quorum, the datacenter's firewall and the nodes' addresses (for SSH) are not seen"),
];

/** What README's role holds: nobody needs to create and delete pools but who adopts containers into one. */
export const ROLE: readonly string[] = [...new Set(PRIVILEGES.map(({ name }) => name))].filter(
  (name) => name !== "Pool.Allocate",
);
