import type { X509Certificate } from "node:crypto";
import type { TLSSocket } from "node:tls";
import { buildConnector } from "undici";
import type { FleetErrorCode } from "../../shared/errors.ts";

export interface TlsTrust {
  verify: boolean;
  caPem?: string;
  /** SHA-256 of the certificate, `AA:BB:…`; pins it instead of asking a CA. Several are separated by commas. */
  fingerprint?: string;
}

/** No connection came about, so that nothing was sent. */
export class ConnectError extends Error {
  override readonly name = "ConnectError";
  /** Not undici's own code: its pool takes UND_ERR_SOCKET for a lost connection and would try for ever. */
  readonly code = "PVE_CONNECT";
  readonly kind: Extract<FleetErrorCode, "node_unreachable" | "tls_untrusted">;
  readonly fingerprint: string | undefined;

  constructor(kind: ConnectError["kind"], text: string, options: { cause?: unknown; fingerprint?: string } = {}) {
    super(text, options.cause === undefined ? undefined : { cause: options.cause });
    this.kind = kind;
    this.fingerprint = options.fingerprint;
  }
}

/** Connects and decides on trust in one place, so that an error can show the certificate that was offered. */
export function createConnector(trust: TlsTrust, options: { timeoutMs: number }): buildConnector.connector {
  const pins = (trust.fingerprint ?? "")
    .split(/[\s,;]+/)
    .filter((pin) => pin !== "")
    .map(normalizeFingerprint);
  const base = buildConnector({
    // Node would destroy the socket before its certificate can be read; `distrust` below decides, before any byte
    // of ours is written. Node still verifies: `authorized` says how that went.
    rejectUnauthorized: false,
    allowH2: false,
    // A resumed session shows no certificate to pin.
    maxCachedSessions: 0,
    timeout: options.timeoutMs,
    ...(trust.caPem === undefined ? {} : { ca: trust.caPem }),
  });
  return (target, callback) => {
    const place = `${target.hostname}:${target.port || 443}`;
    base(target, (...[error, socket]) => {
      if (error !== null) return callback(toConnectError(error, place), null);
      // undici calls back with what tls.connect returned, since only https origins are let in.
      const failure = distrust(socket as TLSSocket, trust, pins, place);
      if (failure === undefined) return callback(null, socket);
      socket.destroy();
      return callback(failure, null);
    });
  };
}

function toConnectError(error: Error, place: string): ConnectError {
  const code = "code" in error && typeof error.code === "string" ? error.code : error.name;
  const text = code.startsWith("ERR_SSL") || code === "EPROTO" ? "does not speak TLS" : code;
  return new ConnectError("node_unreachable", `${place}: ${text}`, { cause: error });
}

function distrust(
  socket: TLSSocket,
  trust: TlsTrust,
  pins: readonly string[],
  place: string,
): ConnectError | undefined {
  if (pins.length === 0 && (!trust.verify || socket.authorized)) return undefined;
  // Asked once: a second call gives nothing.
  const certificate = socket.getPeerX509Certificate();
  const fingerprint = certificate?.fingerprint256 ?? "none";
  if (pins.includes(fingerprint)) return undefined;
  const pin = `set PVE_TLS_FINGERPRINT=${fingerprint}, if \`pvenode cert info\` on the node shows the same`;
  const [reason, wayOut] =
    pins.length > 0
      ? [`is not the pinned one (${pins.join(", ")})`, `If the node has a new one, ${pin}`]
      : // Node sets a string here, whatever its types say; a code such as SELF_SIGNED_CERT_IN_CHAIN.
        whyUnverified(String(socket.authorizationError), certificate, pin);
  const text = `the certificate of ${place}, SHA-256 ${fingerprint}, ${reason}. ${wayOut}`;
  return new ConnectError("tls_untrusted", text, { fingerprint });
}

/** What is wrong with the certificate and what an operator can do, by the code of Node's verification. */
function whyUnverified(
  code: string,
  certificate: X509Certificate | undefined,
  pin: string,
): [reason: string, wayOut: string] {
  switch (code) {
    case "ERR_TLS_CERT_ALTNAME_INVALID":
      return [
        `is for other names: ${certificate?.subjectAltName ?? certificate?.subject ?? "none"}`,
        `Use one of them in PVE_API_URL; or ${pin}`,
      ];
    case "CERT_HAS_EXPIRED":
      return [
        `has expired on ${certificate?.validTo}`,
        `Renew it on the node (pvecm updatecerts --force, or pvenode acme cert renew); or ${pin}`,
      ];
    case "CERT_NOT_YET_VALID":
      return [`is valid from ${certificate?.validFrom} on`, `Set the clocks of this machine and the node; or ${pin}`];
    default:
      return [
        `could not be verified (${code})`,
        `Set PVE_CA_FILE to a copy of the cluster's /etc/pve/pve-root-ca.pem; or ${pin}`,
      ];
  }
}

function normalizeFingerprint(text: string): string {
  const hex = text
    .replace(/^sha256:/i, "")
    .replaceAll(":", "")
    .toUpperCase();
  return hex.match(/../g)?.join(":") ?? hex;
}
