/** The forced command for the fleet's key on a node: a POSIX shell script that runs our verbs and nothing else. */
import { EXEC_BOOT, EXEC_SHELL, GUARD_REFUSED, NODE_LINES, SHELL_BOOT } from "../../shared/node-commands.ts";
import { quoteWord } from "../../shared/shell-quote.ts";

export interface GuardOptions {
  range: { first: number; last: number };
  /** The public key's `TYPE BASE64`, for the line that is shown. */
  publicKey?: string | undefined;
  /** Where the node's tools are; PVE's own folders by default. */
  path?: string | undefined;
  /** Where PVE keeps its containers' configs. */
  configs?: string;
}

const INSTALLED_AT = "/usr/local/sbin/fleet-ssh-guard";

/**
 * The command of the client is compared, cut and checked as text: it is never evaluated, split, expanded or logged. What
 * is then run is written here, with one number put in that consists of digits and lies in the range.
 */
export function toGuardScript({ range, publicKey, path, configs = "/etc/pve/lxc" }: GuardOptions): string {
  const before = (verb: keyof typeof NODE_LINES) => quoteWord(NODE_LINES[verb][0]);
  const after = quoteWord(NODE_LINES.process[1]);
  return `#!/bin/sh
# fleet-ssh-guard: lets the fleet's SSH key run its own verbs on CTs ${range.first} to ${range.last}, and nothing else.
# Save it on each node as ${INSTALLED_AT}, chmod 755, and add to /root/.ssh/authorized_keys:
#
# command="${INSTALLED_AT}",restrict,pty ${publicKey ?? "ssh-ed25519 AAAA... (the key's public half)"}
#
set -fu
PATH=${quoteWord(path ?? "/usr/sbin:/usr/bin:/sbin:/bin")}
LC_ALL=C
export PATH LC_ALL
asked=\${SSH_ORIGINAL_COMMAND-}
unset SSH_ORIGINAL_COMMAND IFS ENV BASH_ENV CDPATH
first=${range.first}
last=${range.last}

# Says why, and to the log too; what was asked is in neither.
refuse() {
  logger -t fleet-ssh-guard -p auth.warning -- "refused: $1" </dev/null >/dev/null 2>&1
  printf '%s\\n' ${quoteWord(GUARD_REFUSED.prefix)}"$1" >&2
  exit ${GUARD_REFUSED.code}
}

# Sets n to what stands between $1 and $2: digits, not too many for a comparison, no zero in front.
take() {
  n=\${asked#"$1"}
  n=\${n%"$2"}
  case $n in '' | 0* | *[!0123456789]*) refuse 'not a number where one belongs' ;; esac
  [ "\${#n}" -le 9 ] || refuse 'the number is too long'
}

vmid() {
  take "$1" "$2"
  { [ "$n" -ge "$first" ] && [ "$n" -le "$last" ]; } || refuse "CT $n is not within $first-$last"
}

# A template in the range is not a sandbox. Snapshots follow in sections of their own.
no_template() {
  config=${quoteWord(configs)}/$n.conf
  [ -e "$config" ] || return 0
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      '['*) return 0 ;;
      template:*1*) refuse "CT $n is a template" ;;
    esac
  done <"$config" || refuse "the config of CT $n can't be read"
}

q="'"
boot=${quoteWord(EXEC_BOOT)}
shell=${quoteWord(EXEC_SHELL)}
terminal=${quoteWord(SHELL_BOOT)}
exec_after=" -- /bin/bash -c $q$boot$q fleet-exec $q$shell$q"
shell_after=" -- /bin/bash -c $q$terminal$q"
process_after=${after}

case $asked in
  ${before("exec")}*"$exec_after")
    vmid ${before("exec")} "$exec_after"
    no_template
    exec pct exec "$n" -- /bin/bash -c "$boot" fleet-exec "$shell"
    ;;
  ${before("shell")}*"$shell_after")
    vmid ${before("shell")} "$shell_after"
    no_template
    exec pct exec "$n" -- /bin/bash -c "$terminal"
    ;;
  ${before("freeze")}*)
    vmid ${before("freeze")} ''
    no_template
    read -r go && exec lxc-freeze -n "$n"
    ;;
  ${before("unfreeze")}*)
    vmid ${before("unfreeze")} ''
    no_template
    read -r go && exec lxc-unfreeze -n "$n"
    ;;
  ${before("state")}*)
    vmid ${before("state")} ''
    exec lxc-info -s -H -n "$n"
    ;;
  ${before("unlock")}*)
    vmid ${before("unlock")} ''
    no_template
    read -r go && exec pct unlock "$n"
    ;;
  ${before("process")}*"$process_after")
    take ${before("process")} "$process_after"
    exec 2>/dev/null
    cat /proc/uptime "/proc/$n/stat"
    exec pgrep -s "$n"
    ;;
  '') refuse 'this key gives no shell' ;;
  *) refuse 'not a command of the fleet' ;;
esac
`;
}
