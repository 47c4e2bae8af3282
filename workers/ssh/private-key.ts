import ssh2 from "ssh2";
import { FleetError } from "../../shared/errors.ts";

/** The key, opened once. Throws `not_configured`, with nothing of the key in it. */
export function parsePrivateKey(pem: string, passphrase: string | undefined): ssh2.ParsedKey {
  const parsed = passphrase === undefined ? ssh2.utils.parseKey(pem) : ssh2.utils.parseKey(pem, passphrase);
  const key = parsed instanceof Error ? parsed : Array.isArray(parsed) ? parsed[0] : parsed;
  if (key !== undefined && !(key instanceof Error) && key.isPrivateKey()) return key;
  const [variable, text] = /passphrase|decrypt|bad (key|padding)/i.test(key instanceof Error ? key.message : "")
    ? ["FLEET_SSH_KEY_PASSPHRASE", passphrase === undefined ? "is missing; the key has one" : "does not open the key"]
    : ["FLEET_SSH_KEY", "is no private key that can be read; make one with: ssh-keygen -t ed25519"];
  // The parser's own error could quote the key: no cause.
  throw new FleetError("not_configured", `${variable} ${text}`, { facts: { variables: [variable] } });
}
