/**
 * What the fleet runs on a PVE node over SSH: a handful of verbs, each a line of fixed text with checked numbers in it.
 * What a sandbox's user sends (command text, environment, input) goes through the channel's stdin and is in no line, so
 * that neither `ps` nor a log on the node shows it. The guard (`producers/cli/ssh-guard.ts`) allows exactly these lines.
 */
import { FleetError, unreachable } from "./errors.ts";
import type { Vmid } from "./ids.ts";
import { quoteWord } from "./shell-quote.ts";

export type NodeCommand =
  /** Shell text for /bin/bash in the container, ended with 124 after `timeoutMs`. */
  | { verb: "exec"; vmid: Vmid; script: string; timeoutMs: number }
  /** Stops all processes of the container where they are, memory kept. */
  | { verb: "freeze"; vmid: Vmid }
  | { verb: "unfreeze"; vmid: Vmid }
  /** The container's state: RUNNING, FROZEN, STOPPED, … */
  | { verb: "state"; vmid: Vmid }
  /** Removes the `lock` of the container's config. */
  | { verb: "unlock"; vmid: Vmid }
  /** What is left of a process and of the session that it leads; every PVE task leads one (POSIX::setsid in fork_worker). */
  | { verb: "process"; pid: number };

/** Shell text for bash in the container, on the terminal that the channel has. */
export interface TerminalCommand {
  verb: "shell";
  vmid: Vmid;
  script: string;
}

export type NodeVerb = NodeCommand["verb"] | TerminalCommand["verb"];

/** The node's own variables go; two that programs count on are there. */
const CLEAN_ENVIRONMENT = `for v in $(compgen -e); do case $v in SSH_*|LC_*|XDG_*|DBUS_*|MAIL|OLDPWD) unset "$v";; esac; done
export HOME="\${HOME:-/root}" LANG=C.UTF-8`;

/** On stdout before anything else: the container's bash has the whole script and starts it now. */
export const EXEC_MARK = "fleet-exec\n";

/**
 * Runs in the container. Reads seconds, script and input (base64), each ended by NUL, then keeps listening: when stdin
 * ends the caller has gone, and the script's process group is killed, as execd does. (Signals can't do that: sshd
 * sends none to a forced command.) Script and input are in no argument and no environment.
 */
export const EXEC_BOOT = `unset t s i
for v in t s i; do IFS= read -r -d "" "$v" || exit 125; done
${CLEAN_ENVIRONMENT}
printf "${EXEC_MARK.replace("\n", "\\n")}"
set -m
/bin/bash -c "$1" 9< <(printf %s "$s") < <(printf %s "$i" | base64 -d) 63<&- 62<&- &
p=$!
exec 3>&2 2>/dev/null
( read -r -t "$t" _; [ $? -gt 128 ]; c=$?; trap "" TERM; kill -KILL -- "-$p"; exit "$c" ) >/dev/null &
w=$!
wait "$p"; c=$?
kill -TERM -- "-$w"; wait "$w" && c=124 && printf "timeout after %ss\\n" "$t" >&3
exit "$c"`;

/** The shell that is the script's own: reads it from descriptor 9, then is as `/bin/bash -c SCRIPT` would be. */
export const EXEC_SHELL = 'eval "exec 9<&-; $(</dev/fd/9)"';

/** On the terminal before anything else. `ready`: it shows nothing of what comes, and the script may be sent; `on`: that is there. */
export const SHELL_MARKS = { ready: "fleet-shell?", on: "fleet-shell!" } as const;

/**
 * Runs in the container, on a terminal. That one is raw until the script (one line of base64) is there: it would show and
 * cut it else; and what is typed may come only once it is not raw any more. When the channel is closed the terminal hangs up, which ends what runs on it.
 */
export const SHELL_BOOT = `unset t s
t=$(stty -g) && stty raw -echo || exit 125
printf "${SHELL_MARKS.ready}"
IFS= read -r s || exit 125
s=$(printf %s "$s" | base64 -d)
stty "$t"
${CLEAN_ENVIRONMENT}
printf "${SHELL_MARKS.on}"
eval "$s"`;

/** `read -t` needs an end; nothing of ours runs for a year. */
const LONGEST_SECONDS = 31_536_000;

/** What stands before and after the one number of each verb's line. */
export const NODE_LINES = {
  exec: ["pct exec ", ` -- /bin/bash -c ${quoteWord(EXEC_BOOT)} fleet-exec ${quoteWord(EXEC_SHELL)}`],
  shell: ["pct exec ", ` -- /bin/bash -c ${quoteWord(SHELL_BOOT)}`],
  // What changes something waits for a word first: a session that is opened late, for somebody who has left, does nothing.
  freeze: ["read -r go && exec lxc-freeze -n ", ""],
  unfreeze: ["read -r go && exec lxc-unfreeze -n ", ""],
  unlock: ["read -r go && exec pct unlock ", ""],
  state: ["lxc-info -s -H -n ", ""],
  // uptime first: its line proves that cat ran and /proc is there, so what is then missing is really gone.
  process: ["exec 2>/dev/null; pid=", "; cat /proc/uptime /proc/$pid/stat; pgrep -s $pid"],
} as const satisfies Record<NodeVerb, readonly [string, string]>;

/** The line that the node's shell gets. Throws `invalid_input` for a number that is none. */
export function toCommandLine(command: NodeCommand | TerminalCommand): string {
  const [before, after] = NODE_LINES[command.verb];
  return `${before}${toDigits(command.verb === "process" ? command.pid : command.vmid)}${after}`;
}

/**
 * What the channel's stdin gets, and whether it then stays open for as long as the command may run. Before these bytes are
 * there nothing is changed on the node.
 */
export function toCommandInput(
  command: NodeCommand,
  stdin: string | Uint8Array = "",
): { bytes: Buffer; held: boolean } {
  switch (command.verb) {
    case "exec": {
      const { script, timeoutMs } = command;
      if (script.includes("\0")) throw new FleetError("invalid_input", "a command must not hold a NUL byte");
      const seconds = timeoutMs > 0 ? Math.min(timeoutMs / 1_000, LONGEST_SECONDS) : LONGEST_SECONDS;
      const fields = [seconds.toFixed(3), script, Buffer.from(stdin).toString("base64")];
      return { bytes: Buffer.from(fields.map((field) => `${field}\0`).join("")), held: true };
    }
    case "freeze":
    case "unfreeze":
    case "unlock":
      return { bytes: Buffer.from("go\n"), held: false };
    case "state":
    case "process":
      return { bytes: Buffer.alloc(0), held: false };
    default:
      throw unreachable(command);
  }
}

/** The line that the terminal gets once it is ready. */
export const toTerminalInput = ({ script }: TerminalCommand): string => `${Buffer.from(script).toString("base64")}\n`;

function toDigits(value: number): string {
  if (!Number.isSafeInteger(value) || value < 1) throw new FleetError("invalid_input", "not a VMID or process id");
  return String(value);
}

/** How the guard says no. */
export const GUARD_REFUSED = { code: 77, prefix: "fleet-ssh-guard: " } as const;
