/** The command that gives a token and its user a privilege: a token of its own never has more than its user. */
export function grant(path: string, privilege: string, tokenId = "USER@REALM!TOKENID"): string {
  // On /vms rather than on one container: the next one has another VMID.
  const where = path.startsWith("/vms/") ? "/vms" : path;
  const [user] = tokenId.split("!");
  return `pveum acl modify ${where} --users '${user}' --tokens '${tokenId}' --roles ${roleWith(privilege)}`;
}

/** A role of PVE's own that holds the privilege. */
function roleWith(privilege: string): string {
  if (privilege.startsWith("VM.")) return "PVEVMAdmin";
  if (/^Datastore\.(?:Audit|AllocateSpace)\b/.test(privilege)) return "PVEDatastoreUser";
  if (privilege.startsWith("Datastore.")) return "PVEDatastoreAdmin";
  if (privilege.startsWith("Pool.")) return privilege === "Pool.Audit" ? "PVEPoolUser" : "PVEPoolAdmin";
  if (privilege.startsWith("SDN.")) return privilege === "SDN.Use" ? "PVESDNUser" : "PVESDNAdmin";
  return privilege === "Sys.Audit" ? "PVEAuditor" : "PVESysAdmin";
}
