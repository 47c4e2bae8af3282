import { FleetError } from "../../shared/errors.ts";
import { SandboxId } from "../../shared/ids.ts";
import type { SandboxRecord } from "../index.ts";

/** What people call a sandbox: its id, or its VMID, hostname or instance id among those that live. */
export async function resolveSandbox(
  text: string,
  sandboxes: { list(): Promise<SandboxRecord[]> },
): Promise<SandboxId> {
  const id = SandboxId.safeParse(text);
  if (id.success) return id.data;
  const found = (await sandboxes.list()).filter(
    ({ vmid, hostname, instanceId }) => String(vmid) === text || hostname === text || instanceId === text,
  );
  const [first, ...others] = found;
  if (!first) {
    throw new FleetError(
      "sandbox_not_found",
      `there is no sandbox with the id, VMID or hostname ${text || "''"}; see fleet ls`,
      {
        facts: { sandbox: text },
      },
    );
  }
  if (others.length > 0) {
    const ids = found.map((sandbox) => sandbox.id);
    throw new FleetError("invalid_input", `${text} could be ${ids.join(" or ")}; give the id`, {
      facts: { fields: ["sandbox"], sandboxes: ids },
    });
  }
  return first.id;
}
