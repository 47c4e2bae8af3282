import { z } from "zod";
import { type ErrorFacts, FleetError, type FleetErrorCode } from "../../shared/errors.ts";
import { grant } from "../../shared/pve-grant.ts";
import { ConnectError } from "./connector.ts";
import { cutShort, findRule, looksTransient } from "./error-texts.ts";
import type { Answer, BrokenExchange } from "./exchange.ts";
import { parseUpid, type Upid } from "./upid.ts";
import { redact } from "./wire.ts";

/** Which call failed. */
export interface PveCall {
  method: string;
  /** Without `/api2/json`. */
  path: string;
  node?: string;
  /** `user@realm!tokenid`, for what an operator can do. */
  tokenId?: string;
  /** Texts that may not show up in the error. */
  secrets?: readonly string[];
}

export interface PveFailure extends PveCall {
  status: number;
  /** The reason phrase. */
  reason: string;
  body: string;
  /** Of a redirect. */
  location?: string;
}

const MAX_TEXT = 500;

const ErrorBody = z.looseObject({
  message: z.string().optional(),
  errors: z.record(z.string(), z.coerce.string()).nullish(),
});

const Success = z.looseObject({ data: z.unknown() });

/** PVE's `data`; throws what the answer means otherwise. */
export function toData(answer: Answer, call: PveCall): unknown {
  const json = parseJson(answer.body);
  if (answer.status !== 200) throw toPveError({ ...answer, ...call });
  const parsed = Success.safeParse(json);
  if (!parsed.success || !("data" in parsed.data)) {
    const failure = { ...answer, ...call };
    throw badReply(failure, answer.body === "" ? "is empty" : `is not PVE's JSON${titleOf(failure)}`);
  }
  return parsed.data.data;
}

/** What an answer with another status than 200 means. */
export function toPveError(failure: PveFailure): FleetError {
  const body = ErrorBody.safeParse(parseJson(failure.body));
  const fields = body.success ? (body.data.errors ?? {}) : {};
  // `message` exists since pve-http-server 5.2.0; before, the text was in the reason phrase only.
  const text = clean((body.success && body.data.message) || failure.reason, failure);
  const facts = { ...placeOf(failure), status: failure.status };

  if (failure.status === 401) return unauthorized(failure, text, facts);
  if (failure.status >= 595 && failure.status <= 599) return fromProxy(failure, text, facts);
  // PVE gives none of these; a proxy in front of it does.
  const foreign = failure.status < 400 || (failure.status >= 502 && failure.status <= 504);
  const page = !body.success && /^\s*</.test(failure.body);
  if (failure.location) {
    const where = clean(failure.location, failure);
    return badReply(failure, `is a redirect to ${where}; PVE_API_URL must be PVE's own address, https://host:8006`);
  }
  if (foreign || page) return badReply(failure, `is not PVE's own: status ${failure.status}${titleOf(failure)}`);
  if (failure.status === 403) return forbidden(failure, text, facts);
  if (failure.status === 400 && Object.keys(fields).length > 0) return badParameters(failure, fields, facts);
  if (text === "" || text === "Internal Server Error") return badReply(failure, "says nothing");

  const found = fromText(text, isClone(failure), facts);
  if (found !== undefined) return found;
  const weather = looksTransient(text) || (failure.method === "GET" && cutShort(text));
  if (failure.status === 500 && weather) return new FleetError("pve_failed", text, { facts });
  return new FleetError("pve_rejected", text, { facts });
}

/** What it means that no host gave an answer. */
export function toTransportError(
  failures: readonly { host: string; broken: BrokenExchange }[],
  call: PveCall,
): FleetError {
  const write = call.method !== "GET";
  const facts = placeOf(call);
  const sent = failures.find((failure) => failure.broken.sent);
  const first = sent ?? failures[0];
  if (first === undefined) return new FleetError("internal", "no PVE API host was tried", { facts });
  const cause = first.broken.cause;
  if (write && sent !== undefined) {
    const text = `the connection to ${sent.host} broke before its answer to a change: ${sent.broken.message}`;
    return new FleetError("outcome_unknown", clean(text, call), { cause, facts });
  }
  if (cause instanceof FleetError) return cause;
  const causes = failures.map((failure) => failure.broken.cause);
  const untrusted = causes.filter((each) => each instanceof ConnectError && each.kind === "tls_untrusted");
  // Where only some hosts show a wrong certificate, the others may come back.
  if (cause instanceof ConnectError && untrusted.length === failures.length) {
    return new FleetError(cause.kind, cause.message, {
      cause,
      facts: { ...facts, host: first.host, ...(cause.fingerprint && { fingerprint: cause.fingerprint }) },
    });
  }
  const text = failures.map(({ host, broken }) => `${host}: ${broken.message}`).join("; ");
  return new FleetError("node_unreachable", clean(`no answer from PVE: ${text}`, call), { cause, facts });
}

/** PVE's own rule (UPID::status_is_error): a task with warnings has succeeded. */
export function isTaskSuccess(exitstatus: string): boolean {
  return exitstatus === "OK" || /^WARNINGS: \d+$/.test(exitstatus);
}

/** What it means that a task ended with anything but success. */
export function taskError(exitstatus: string, upid: Upid): FleetError {
  const task = parseUpid(upid);
  const facts: ErrorFacts = { node: task.node, task: task.type, upid };
  if (/^\d+$/.test(task.id)) facts[task.type === "vzclone" ? "source" : "vmid"] = Number(task.id);
  const text = clean(exitstatus, {});
  const right = missingRight(text);
  if (right !== undefined) return notAllowed(text, right, { facts, tokenId: task.user });
  return (
    fromText(text, task.type === "vzclone" && isAboutSource(text, task.id), facts) ??
    new FleetError("task_failed", text === "" ? "the task ended without saying how" : text, { facts })
  );
}

/** Of vzdump (PVE::VZDump::exec_backup) and migrations (PVE::AbstractMigrate::migrate), whatever has gone wrong. */
export const saysNothing = (exitstatus: string): boolean =>
  /^(?:job errors|migration (?:aborted|problems)|migration finished with problems .*)$|check log$/.test(exitstatus);

/** What the log of such a task says of it; the last one counts, but a volume that can't be moved tells more. Pure. */
export function reasonIn(lines: readonly string[]): string | undefined {
  const reasons = lines.flatMap((line) => LOGGED.exec(line)?.[1] ?? []).filter((text) => !saysNothing(text));
  const named = lines.flatMap((line) => NAMED.exec(line)?.[1] ?? []).filter((text) => !saysNothing(text));
  return lines.find((line) => STUCK.test(line))?.replace(/^[\d\s:-]+/, "") ?? named.at(-1) ?? reasons.at(-1);
}

const LOGGED = /\bERROR: (.+)$/;
const NAMED = /\bERROR: (?:migration aborted \(duration [\d:]+\):|Backup of VM \d+ failed -) (.+)$/;
const STUCK = /\bcan't migrate local volume '/;

function fromText(text: string, clone: boolean, facts: ErrorFacts): FleetError | undefined {
  const found = findRule(text);
  if (found === undefined) return undefined;
  const code = (clone && found.rule.onClone) || found.rule.code;
  return new FleetError(code, text, { facts: { ...facts, ...found.facts } });
}

function unauthorized(failure: PveFailure, text: string, facts: ErrorFacts): FleetError {
  const { tokenId = "USER@REALM!TOKENID" } = failure;
  const user = tokenId.split("!")[0];
  const said = `PVE does not accept the API token ${tokenId}${text === "" ? "" : `: ${text}`}`;
  const wayOut = `PVE_API_TOKEN must be ${tokenId}=UUID of a token that exists and has not expired, its user enabled`;
  return new FleetError("unauthorized", `${said}. ${wayOut}; see: pveum user list; pveum user token list ${user}`, {
    facts,
  });
}

/** 595 to 599 are AnyEvent::HTTP's own: the host that we asked could not get an answer from the node's daemon. */
function fromProxy(failure: PveFailure, text: string, facts: ErrorFacts): FleetError {
  // 595 should mean that the node was never reached; a change is not trusted to that, since looking costs little.
  if (failure.method === "GET") {
    return new FleetError("node_unreachable", `${failure.node ?? "the node"} can't be reached: ${text}`, { facts });
  }
  return new FleetError("outcome_unknown", `no answer to a change, which may still be made: ${text}`, { facts });
}

/** RPCEnvironment: "Permission check failed (/vms/201, VM.Audit)"; several privileges are joined by '|'. */
function forbidden(failure: PveFailure, text: string, facts: ErrorFacts): FleetError {
  const missingPool = /pool '(?<pool>[^']*)' does not exist/.exec(text)?.groups?.["pool"];
  if (missingPool !== undefined) {
    return new FleetError("not_configured", `${text}. Make it: pveum pool add ${missingPool}`, {
      facts: { ...facts, pool: missingPool },
    });
  }
  // GuestHelpers::assert_tag_permissions: which tags a token may set is the datacenter's to say.
  const tag = /\(\/, Sys\.Modify for modifying tag '(?<tag>[^']*)'\)/.exec(text)?.groups?.["tag"];
  if (tag !== undefined) {
    const allow = "pvesh set /cluster/options --user-tag-access user-allow=free";
    return new FleetError("forbidden", `${text}. The datacenter's options keep tag ${tag} from the token: ${allow}`, {
      facts: { ...facts, tag },
    });
  }
  // Of the two ways to be allowed a new VMID PVE names neither.
  const unnamed = isClone(failure) && /^Permission check failed\.?$/.test(text);
  const right = unnamed ? { path: "/vms", privilege: "VM.Allocate" } : missingRight(text);
  if (right === undefined) return new FleetError("forbidden", text, { facts });
  const said = unnamed ? `${text}: a new container needs ${right.privilege} on ${right.path} or on its pool` : text;
  return notAllowed(said, right, { facts, tokenId: failure.tokenId });
}

interface Right {
  path: string;
  privilege: string;
}

function missingRight(text: string): Right | undefined {
  const [, path, privilege] = /Permission check failed \((\/[^,()]*), ([\w.|, -]+)\)/.exec(text) ?? [];
  return path === undefined || privilege === undefined ? undefined : { path, privilege };
}

function notAllowed(
  said: string,
  { path, privilege }: Right,
  { facts, tokenId }: { facts: ErrorFacts; tokenId: string | undefined },
): FleetError {
  // On /vms rather than on one container: the next one has another VMID.
  const where = path.startsWith("/vms/") ? "/vms" : path;
  return new FleetError("forbidden", `${said}. Give the token that right: ${grant(where, privilege, tokenId)}`, {
    facts: { ...facts, path, privilege },
  });
}

function badParameters(failure: PveFailure, fields: Record<string, string>, facts: ErrorFacts): FleetError {
  const cleaned = Object.entries(fields).map(([name, text]) => [name, clean(text, failure)] as const);
  for (const [, text] of cleaned) {
    const known = fromText(text, false, facts);
    if (known !== undefined) return known;
  }
  const texts = cleaned.map(([name, text]) => `${name}: ${text}`);
  return new FleetError("invalid_input", `PVE does not take ${texts.join("; ")}`, {
    facts: { ...facts, fields: Object.keys(fields), texts },
  });
}

/** An answer that PVE does not give. After a change nobody knows what became of it. */
function badReply(failure: PveFailure, what: string): FleetError {
  const facts = { ...placeOf(failure), status: failure.status };
  const code: FleetErrorCode = failure.method === "GET" ? "pve_bad_reply" : "outcome_unknown";
  return new FleetError(code, `the answer to ${failure.method} ${failure.path} ${what}`, { facts });
}

/** What a page of HTML says of itself. */
function titleOf(failure: PveFailure): string {
  const title = /<title>([^<]{1,100})/i.exec(failure.body)?.[1];
  return title === undefined ? "" : `, a page titled "${clean(title, failure)}"`;
}

/** Where a call goes, as facts. */
export function placeOf(call: PveCall): ErrorFacts {
  const vmid = /\/lxc\/(\d+)/.exec(call.path)?.[1];
  return {
    call: `${call.method} ${call.path}`,
    ...(call.node !== undefined && { node: call.node }),
    // A clone's path names its source, as its task does.
    ...(vmid !== undefined && { [isClone(call) ? "source" : "vmid"]: Number(vmid) }),
  };
}

/** POST /nodes/{node}/lxc/{vmid}/clone, whose refusals are about the source. */
function isClone(call: PveCall): boolean {
  return call.method === "POST" && call.path.endsWith("/clone");
}

/** In a clone's task the target can be locked or gone just as well; only texts that name a VMID tell. */
function isAboutSource(text: string, source: string): boolean {
  const named = /(\d+)\.(?:conf|lock)\b/.exec(text)?.[1];
  return named === undefined || named === source;
}

function clean(text: string, call: Pick<PveCall, "secrets">): string {
  const line = redact(text, call.secrets ?? [])
    .trim()
    .replace(/\s+/g, " ");
  return line.length > MAX_TEXT ? `${line.slice(0, MAX_TEXT)}…` : line;
}

function parseJson(body: string): unknown {
  try {
    return JSON.parse(body);
  } catch {
    return undefined;
  }
}
