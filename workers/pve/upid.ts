import { z } from "zod";
import { FleetError } from "../../shared/errors.ts";
import { NodeName } from "../../shared/ids.ts";

/** PVE::UPID: `UPID:node:pid:pstart:starttime:type:id:user[!token]:`; pid, pstart and starttime are hexadecimal. */
const PATTERN =
  /^UPID:([a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?):([0-9A-Fa-f]{8}):([0-9A-Fa-f]{8,9}):([0-9A-Fa-f]{8}):([^:\s/]+):([^:\s/]*):([^:\s/]+):$/;

/** The id of a PVE task, as PVE writes it. */
export const Upid = z.string().regex(PATTERN, "must look like UPID:node:…:type:id:user:").brand<"Upid">();
export type Upid = z.infer<typeof Upid>;

/** What a UPID says about its task. */
export interface UpidFacts {
  node: NodeName;
  pid: number;
  /** Start of the process in clock ticks since boot. */
  pstart: number;
  /** Epoch seconds, on the node's clock. */
  starttime: number;
  /** `vzclone`, `vzstart`, … */
  type: string;
  /** A VMID for tasks of containers; of a clone it is the source's. */
  id: string;
  /** With its token: `root@pam!fleet`. */
  user: string;
}

/** Takes a UPID apart. Throws `invalid_input` for anything else. */
export function parseUpid(upid: string): UpidFacts {
  const [, node, pid, pstart, starttime, type, id, user] = PATTERN.exec(upid) ?? [];
  if (!node || !pid || !pstart || !starttime || !type || id === undefined || !user) {
    throw new FleetError("invalid_input", "not a PVE task id");
  }
  return {
    node: NodeName.parse(node),
    pid: Number.parseInt(pid, 16),
    pstart: Number.parseInt(pstart, 16),
    starttime: Number.parseInt(starttime, 16),
    type,
    id,
    user,
  };
}
