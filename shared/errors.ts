/**
 * One error class and one table from its code to what is done about it.
 * A code is a fact in snake_case. It travels in events, logs, metrics and on the board; nothing secret is ever in it.
 */

/**
 * What the fleet does about an error:
 * - `never`: it will not heal; undo what was made and fail.
 * - `lock`, `transport`, `overload`: try again on that curve (see `retryDelayMs`).
 * - `look_first`: the outcome of a write is unknown; look at PVE, then continue, adopt or repeat. Waits as `transport`.
 * - `next_vmid`: lease another VMID and go on at once.
 * - `replace`: give the operation back to placement, which picks a node again.
 */
export type Policy = "never" | "lock" | "transport" | "overload" | "look_first" | "next_vmid" | "replace";

/** Every error code of the product, with its policy. */
export const POLICY = {
  // What the caller sent, or asked of a sandbox that can't do it
  invalid_input: "never",
  idempotency_conflict: "never",
  quota_exceeded: "never",
  operation_unknown: "never",
  not_retriable: "never",
  batch_not_found: "never",
  cursor_expired: "never",
  group_not_found: "never",
  sandbox_not_found: "never",
  sandbox_gone: "never",
  service_not_found: "never",
  not_running: "never",
  is_template: "never",
  member_taken: "look_first",
  not_movable: "never",
  already_adopted: "never",
  not_adoptable: "never",
  not_ready: "never",
  unsupported: "never",
  timeout: "never",
  canceled: "never",
  // What the configuration or the cluster lacks
  not_configured: "never",
  // These two end a worker's start. Later they are an operator's to mend, for all operations at once: none is given up at once.
  unauthorized: "overload",
  tls_untrusted: "overload",
  forbidden: "never",
  template_not_found: "never",
  template_in_use: "never",
  template_unclean: "never",
  template_exists: "never",
  build_failed: "never",
  privileged_template: "never",
  linked_clone_unsupported: "never",
  snapshot_unsupported: "never",
  snapshot_exists: "never",
  snapshot_not_found: "never",
  snapshot_blocked: "never",
  storage_not_found: "never",
  storage_full: "replace",
  address_range_exhausted: "overload",
  vmid_range_exhausted: "overload",
  execd_unprotected: "never",
  execd_unauthorized: "never",
  execd_unreachable: "transport",
  exec_interrupted: "never",
  user_not_found: "never",
  input_refused: "never",
  // Files
  file_not_found: "never",
  is_a_directory: "never",
  not_a_directory: "never",
  not_a_file: "never",
  file_refused: "never",
  disk_full: "never",
  content_too_large: "never",
  content_gone: "never",
  content_damaged: "never",
  transfer_interrupted: "transport",
  transfers_full: "overload",
  setup_failed: "never",
  no_address: "never",
  url_unresolvable: "never",
  protected: "never",
  address_refused: "never",
  shutdown_refused: "never",
  // PVE's weather
  vmid_taken: "next_vmid",
  source_locked: "lock",
  container_locked: "lock",
  config_changed: "lock",
  already_running: "look_first",
  already_stopped: "look_first",
  container_running: "look_first",
  container_missing: "look_first",
  node_unreachable: "transport",
  node_unavailable: "replace",
  outcome_unknown: "look_first",
  no_quorum: "overload",
  pve_overloaded: "overload",
  pve_rejected: "never",
  pve_failed: "transport",
  pve_bad_reply: "transport",
  task_failed: "transport",
  task_lost: "look_first",
  start_failed: "transport",
  quarantined: "never",
  // SSH to a node
  ssh_unreachable: "transport",
  ssh_refused: "never",
  ssh_host_key_refused: "never",
  key_not_found: "never",
  // Webhooks
  webhook_not_found: "never",
  webhook_failed: "transport",
  signature_invalid: "never",
  // The fleet itself
  lock_lost: "transport",
  shutting_down: "transport",
  redis_unavailable: "transport",
  internal: "transport",
} as const satisfies Record<string, Policy>;

/** Whether PVE lets nothing of this process through: its token or PVE's certificate is not accepted. */
export function isAboutAccess({ code }: { code: FleetErrorCode }): boolean {
  return code === "unauthorized" || code === "tls_untrusted";
}

export type FleetErrorCode = keyof typeof POLICY;

/** Small, secret-free facts about an error, such as `{ node: "pve1", vmid: 20001 }`. */
export type ErrorFacts = Record<string, string | number | boolean | null | readonly string[]>;

/** The form in which an error is stored and sent. */
export interface ErrorRecord {
  code: FleetErrorCode;
  message: string;
  facts: ErrorFacts;
}

/**
 * Every failure that leaves the fleet. `message` starts with the code, because BullMQ keeps only message and stack.
 * `facts` says what and where; `cause` is kept for the log.
 */
export class FleetError extends Error {
  override readonly name = "FleetError";
  readonly code: FleetErrorCode;
  readonly facts: ErrorFacts;
  /** The text without the code in front. */
  readonly text: string;

  constructor(code: FleetErrorCode, text: string, options: { cause?: unknown; facts?: ErrorFacts } = {}) {
    super(`${code}: ${text}`, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.text = text;
    this.facts = options.facts ?? {};
  }

  get policy(): Policy {
    return POLICY[this.code];
  }

  /** The same error with more facts, for a caller that knows more about the place. */
  with(facts: ErrorFacts): FleetError {
    return new FleetError(this.code, this.text, { cause: this.cause ?? this, facts: { ...this.facts, ...facts } });
  }
}

export function toErrorRecord(error: FleetError): ErrorRecord {
  return { code: error.code, message: error.text, facts: error.facts };
}

export function fromErrorRecord(record: ErrorRecord): FleetError {
  return new FleetError(record.code, record.message, { facts: record.facts });
}

/** Any thrown thing as a FleetError; what we did not foresee is `internal`, with its cause kept. */
export function toFleetError(thrown: unknown): FleetError {
  if (thrown instanceof FleetError) return thrown;
  if (thrown instanceof Error && (thrown.name === "AbortError" || thrown.name === "TimeoutError")) {
    return toFleetErrorFromAbort(thrown);
  }
  // The text of an unforeseen error could quote input; only its class goes out.
  const kind = thrown instanceof Error ? thrown.constructor.name : typeof thrown;
  return new FleetError("internal", `unexpected ${kind}; see the worker's log`, { cause: thrown });
}

function toFleetErrorFromAbort(error: Error): FleetError {
  if (error.cause instanceof FleetError) return error.cause;
  return new FleetError("timeout", "time ran out", { cause: error });
}

const CURVES = {
  lock: { firstMs: 2_000, lastMs: 30_000 },
  transport: { firstMs: 1_000, lastMs: 15_000 },
  overload: { firstMs: 5_000, lastMs: 60_000 },
} as const;

/**
 * How long to wait before attempt `attempt + 1`, in ms; `null` when there is none.
 * Doubles from the curve's first value to its last, with jitter of ±25 %. `random` is in [0, 1).
 */
export function retryDelayMs(policy: Policy, attempt: number, random: number): number | null {
  switch (policy) {
    case "never":
      return null;
    case "next_vmid":
      return 0;
    case "replace":
      return Math.round(500 * (0.75 + random / 2));
    case "lock":
    case "overload":
    case "transport":
    case "look_first": {
      const curve = CURVES[policy === "look_first" ? "transport" : policy];
      const base = Math.min(curve.firstMs * 2 ** Math.max(0, attempt - 1), curve.lastMs);
      return Math.round(base * (0.75 + random / 2));
    }
    default:
      throw unreachable(policy);
  }
}

/** For the default branch of an exhaustive switch. */
export function unreachable(value: never): Error {
  return new Error(`unreachable: ${String(value)}`);
}
