/** The command that gives a token and its user a privilege: a token of its own never has more than its user. */
export function grant(path: string, privilege: string, tokenId = "USER@REALM!TOKENID"): string {
  const [user] = tokenId.split("!");
  const to = (role: string) => `pveum acl modify ${path} --users '${user}' --tokens '${tokenId}' --roles ${role}`;
  const role = roleWith(privilege);
  if (role !== null) return to(role);
  const [first = privilege] = privilege.split("|");
  const own = `Fleet${first.replaceAll(".", "")}`;
  return `pveum role add ${own} -privs ${first} && ${to(own)}`;
}

/** A role of PVE's own that holds the privilege; null where that is Administrator alone (pve-access-control, create_roles). */
function roleWith(privilege: string): string | null {
  if (privilege.startsWith("VM.")) return "PVEVMAdmin";
  if (/^Datastore\.(?:Audit|AllocateSpace)\b/.test(privilege)) return "PVEDatastoreUser";
  if (privilege.startsWith("Datastore.")) return "PVEDatastoreAdmin";
  if (privilege.startsWith("Pool.")) return privilege === "Pool.Audit" ? "PVEPoolUser" : "PVEPoolAdmin";
  if (privilege.startsWith("SDN.")) return privilege === "SDN.Use" ? "PVESDNUser" : "PVESDNAdmin";
  return privilege === "Sys.Audit" ? "PVEAuditor" : null;
}
