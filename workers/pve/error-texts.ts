/**
 * PVE's error texts and what they are to us. The first rule that fits wins; named groups become facts.
 * PVE has no error codes of its own: nearly all refusals are status 500, and a task's exit status is such a text too.
 * Sources: answers recorded on PVE 8.4 and 9.2, and `die` lines of pve-container, pve-guest-common, pve-storage, pve-cluster and
 * pve-common.
 */
import type { ErrorFacts, FleetErrorCode } from "../../shared/errors.ts";

export interface TextRule {
  pattern: RegExp;
  code: FleetErrorCode;
  /** What it is when it comes from a clone, whose source is another container than its target. */
  onClone?: FleetErrorCode;
  facts?: ErrorFacts;
}

const rule = (code: FleetErrorCode, pattern: RegExp, more: Omit<TextRule, "code" | "pattern"> = {}): TextRule => ({
  code,
  pattern,
  ...more,
});

const TEXT_RULES: readonly TextRule[] = [
  // RESTEnvironment::fork_worker: the worker may run or not, and leaves locks behind on 9.x.
  rule("outcome_unknown", /got no worker upid|got strange worker upid|starting worker failed/),
  rule("task_lost", /no such task/),
  rule("task_lost", /^unexpected status|unable to read tail|unable to get last line from task log/),

  rule("no_quorum", /no quorum|cluster filesystem not online|'\/etc\/pve\/[^']*'.* - Permission denied/),
  rule("vmid_taken", /(?:CT|VM) (?<taken>\d+) already exists(?: on node '(?<takenOn>[^']+)')?/),

  // Locks. A storage's is not a container's: too many allocate on it at once.
  rule(
    "pve_overloaded",
    /cfs-lock '(?<lock>[^']+)'|got lock request timeout|'(?<lock2>[^']+)'-locked command timed out/,
  ),
  rule("source_locked", /can't acquire lock '\/var\/run\/vzdump\.lock'/, { facts: { lock: "vzdump" } }),
  rule("container_locked", /can't (?:lock file|acquire lock) '[^']*'/, {
    onClone: "source_locked",
    facts: { lock: "file" },
  }),
  rule("container_locked", /(?:CT|VM) is locked(?: \((?<lock>[^)]+)\))?/, { onClone: "source_locked" }),
  rule("container_locked", /Failed to obtain guest migration lock/, { facts: { lock: "migrate" } }),
  rule("config_changed", /detected modified configuration/),

  // What the container is.
  rule("already_running", /(?:CT|VM) \d+ already running/),
  rule("already_stopped", /(?:CT|VM) \d+ not running/),
  rule("container_running", /container is running|if the CT is running|: vm is running|overwrite running container/),
  rule("protected", /protection mode enabled/),
  // "linked cloned" of PVE::QemuServer and old releases too.
  rule("template_in_use", /base volume '(?<volume>[^']+)' is still in use by linked clone/),
  rule("container_missing", /Configuration file '(?:nodes\/(?<soughtOn>[^/']+)\/lxc\/)?\d+\.conf' does not exist/, {
    onClone: "template_not_found",
  }),

  rule("template_not_found", /volume '(?<archive>[^']*:vztmpl\/[^']*)' does not exist/),

  // What can't be done.
  rule("linked_clone_unsupported", /(?:Linked clone|Template) feature (?:for '(?<volume>[^']+)' )?is not available/),
  rule("linked_clone_unsupported", /can't clone CT to node '(?<target>[^']+)' \(CT uses local storage\)/),
  rule("snapshot_unsupported", /snapshot feature is not available/),
  rule("snapshot_exists", /snapshot name '(?<snapshot>[^']*)' already used/),
  rule("snapshot_blocked", /'(?<snapshot>[^']*)' is not most recent snapshot on '(?<volume>[^']*)'/),
  rule("snapshot_not_found", /snapshot '(?<snapshot>[^']*)' does not exist/),
  rule("invalid_input", /parameter 'storage' not allowed for linked clones|can't clone to non-shared storage/),
  rule("invalid_input", /unable to use snapshot name|unable to shrink disk size|disk is already at specified size/),
  rule("invalid_input", /no options specified|invalid size string/),
  rule("forbidden", /only allowed for root@pam|Only root may use this option/),

  // Storages and nodes.
  rule("storage_not_found", /storage '(?<storage>[^']*)' (?:does not exist|is disabled|is not available on node)/),
  rule(
    "storage_not_found",
    /storage '(?<storage>[^']*)' does not (?:support|allow)|configured on storage '(?<storage2>[^']*)'/,
  ),
  rule("storage_full", /no space left|not enough (?:free )?space|insufficient free space|out of space/i),
  rule("storage_full", /thin pool \S+ reached threshold|thin pool .*out of data space|quota exceeded/i),
  rule("node_unreachable", /hostname lookup '(?<sought>[^']*)' failed/),
  rule("node_unavailable", /no such cluster node '(?<target>[^']*)'/),

  // What happened in a task.
  rule("shutdown_refused", /container did not stop/),
  rule("start_failed", /startup for container '\d+' failed|'systemctl start pve-container|hookscript error/),
  rule("task_failed", /interrupted by signal|received interrupt/, { facts: { interrupted: true } }),
];

/** Texts that tell of bad weather rather than of a refusal. */
const TRANSIENT =
  /time(?:d )?[ -]?out|temporar|try again|connection (?:refused|reset|closed|lost)|broken pipe|is not online|interrupted|resource busy|cannot allocate memory|unable to fork|too many|not ready|i\/o error/i;

export function looksTransient(text: string): boolean {
  return TRANSIENT.test(text);
}

/** A node's tool that PVE read from and that failed, such as `ip` in a container that stops meanwhile (LXC::get_interfaces). */
export const cutShort = (text: string): boolean => /^command '.*' failed|^malformed JSON string/.test(text);

/** The rule for a text and the facts in it; undefined for a text that we do not know. */
export function findRule(text: string): { rule: TextRule; facts: ErrorFacts } | undefined {
  for (const candidate of TEXT_RULES) {
    const match = candidate.pattern.exec(text);
    if (match === null) continue;
    const facts: ErrorFacts = { ...candidate.facts };
    for (const [name, value] of Object.entries(match.groups ?? {})) {
      // Two groups of one pattern can't share a name; the second one ends in a digit.
      if (value !== undefined) facts[name.replace(/\d$/, "")] = /^\d+$/.test(value) ? Number(value) : value;
    }
    return { rule: candidate, facts };
  }
  return undefined;
}
