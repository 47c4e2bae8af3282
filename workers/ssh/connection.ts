/** The way to one node: a connection opened on first use and again when it is lost, and its channels. */
import type { ParsedKey, ServerHostKeyAlgorithm } from "ssh2";
import { FleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import { orAbort } from "../or-abort.ts";
import { toConnectError } from "./failures.ts";
import type { HostPlace, TrustOf } from "./host-trust.ts";
import { Line } from "./line.ts";
import { Link } from "./link.ts";

/** sshd allows 10 sessions a connection (MaxSessions); what was given up may hold one for a while. */
const CHANNELS = 8;
const CONNECT_MS = 10_000;

export interface ConnectionSetup {
  node: NodeName;
  user: string;
  privateKey: ParsedKey;
  locate: (node: NodeName, signal: AbortSignal) => Promise<{ host: string; port: number }>;
  trustOf: TrustOf;
}

export class NodeConnection implements AsyncDisposable {
  readonly node: NodeName;
  readonly #setup: ConnectionSetup;
  readonly #line = new Line(CHANNELS);
  readonly #closing = new AbortController();
  /** All that are open: the one in use, and retired ones whose last commands are running. */
  readonly #links = new Set<Link>();
  #connecting: Promise<Link> | null = null;
  #link: Link | null = null;

  constructor(setup: ConnectionSetup) {
    this.#setup = setup;
    this.node = setup.node;
  }

  /** Aborts when everything closes. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  /** One of the node's channels, once it is free; to be disposed of when the session has ended. */
  enter(signal: AbortSignal): Promise<Disposable> {
    return this.#line.enter(signal);
  }

  /** The connection that is up, or a new one. Throws `ssh_unreachable`, `ssh_refused`, `ssh_host_key_refused`. */
  async connect(signal: AbortSignal): Promise<Link> {
    signal.throwIfAborted();
    if (this.#link?.usable) return this.#link;
    // One attempt for all who wait; no signal of theirs ends it.
    this.#connecting ??= this.#open().finally(() => {
      this.#connecting = null;
    });
    return orAbort(this.#connecting, signal);
  }

  /** A connection for one caller alone, who destroys it. Throws as `connect`. */
  async dial(signal: AbortSignal): Promise<Link> {
    signal.throwIfAborted();
    const link = await orAbort(this.#dial(), signal);
    link.hold();
    return link;
  }

  async #open(): Promise<Link> {
    this.#link = await this.#dial();
    return this.#link;
  }

  async #dial(): Promise<Link> {
    const { node, user, privateKey, locate, trustOf } = this.#setup;
    const signal = AbortSignal.any([this.#closing.signal, AbortSignal.timeout(CONNECT_MS)]);
    let place: HostPlace = { node, host: node, port: 0 };
    let refusal: FleetError | null = null;
    try {
      place = { node, ...(await locate(node, signal)) };
      const trust = trustOf(place);
      const config = {
        username: user,
        authHandler: [{ type: "publickey" as const, username: user, key: privateKey }],
        algorithms: { serverHostKey: toSignatures(trust.types) },
        hostVerifier: (key: Buffer) => {
          refusal = trust.refuse(key);
          return refusal === null;
        },
      };
      const link = await Link.open(place, config, signal);
      for (const old of this.#links) if (!old.usable) this.#links.delete(old);
      this.#links.add(link);
      return link;
    } catch (error) {
      this.#closing.signal.throwIfAborted();
      throw refusal ?? toConnectError(error, place, user);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new FleetError("shutting_down", "the worker is shutting down"));
    await this.#connecting?.catch(() => {});
    for (const link of this.#links) link.destroy();
  }
}

const SIGNATURES = [
  "ssh-ed25519",
  "ecdsa-sha2-nistp256",
  "ecdsa-sha2-nistp384",
  "ecdsa-sha2-nistp521",
  "rsa-sha2-512",
  "rsa-sha2-256",
] as const satisfies readonly ServerHostKeyAlgorithm[];

/**
 * Those of the pinned types first, since a server may have several keys. An RSA key signs with SHA-2 today; its type in
 * known_hosts is ssh-rsa all the same (RFC 8332).
 */
function toSignatures(types: readonly string[]): ServerHostKeyAlgorithm[] {
  const pinned = types.flatMap((type) => (type === "ssh-rsa" ? ["rsa-sha2-512", "rsa-sha2-256"] : [type]));
  const first = SIGNATURES.filter((one) => pinned.includes(one));
  return [...first, ...SIGNATURES.filter((one) => !first.includes(one))];
}
