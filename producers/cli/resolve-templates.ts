import { FleetError } from "../../shared/errors.ts";
import { SandboxId } from "../../shared/ids.ts";
import type { TemplateView } from "../index.ts";

export interface TemplateChoice {
  /** Whatever bears the name, rather than an error where several do. */
  all?: boolean | undefined;
}

/**
 * What people call a template: its id, or its VMID, its name or NAME:VERSION. Versions and replicas share a name, and each of
 * them is a template of its own. Only those that the fleet made are taken.
 */
export function resolveTemplates(
  text: string,
  templates: readonly TemplateView[],
  { all = false }: TemplateChoice,
): SandboxId[] {
  const id = SandboxId.safeParse(text);
  if (id.success) return [id.data];
  const found = templates.filter(({ vmid, name, version }) =>
    [String(vmid), name, `${name}:${version}`].includes(text),
  );
  const ids = found.flatMap((one) => one.id ?? []);
  if (ids.length === 0) {
    const others = found.map(describe).join(", ");
    const problem =
      others === "" ? `there is no template ${text}` : `the fleet made no template ${text}, only PVE has ${others}`;
    throw new FleetError("template_not_found", `${problem}; fleet template ls lists all`, {
      facts: { template: text },
    });
  }
  if (found.length > 1 && !all) {
    throw new FleetError(
      "invalid_input",
      `${text} could be ${found.map(describe).join(" or ")}; give the VMID, or --all for those that the fleet made`,
      { facts: { fields: ["template"], vmids: found.map(({ vmid }) => String(vmid)) } },
    );
  }
  return ids;
}

function describe({ vmid, node, version, copyOf, id }: TemplateView): string {
  const what = [
    ...(version === undefined ? [] : [`version ${version}`]),
    ...(copyOf === undefined ? [] : [`a replica of ${copyOf}`]),
    ...(id === undefined ? ["not the fleet's"] : []),
  ];
  return `${vmid} on ${node}${what.length === 0 ? "" : ` (${what.join(", ")})`}`;
}
