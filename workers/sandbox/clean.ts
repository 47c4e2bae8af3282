/** What of a sandbox must not be in its copies: taken out of a running copy, from inside, by a script for /bin/bash. */
import { randomBytes } from "node:crypto";
import { FleetError } from "../../shared/errors.ts";
import type { Run } from "../run/run.ts";
import { containerOf } from "./look.ts";
import { awaitReady } from "./ready.ts";

/** Waits for the boot, which may still write what is to go, up to 90 s; the rest takes a moment. */
const TIMEOUT_MS = 120_000;

/**
 * The daemon's token, the machine's id and the SSH host keys. PVE empties the machine id of each clone by itself; an
 * empty file makes systemd take a new one. Nobody makes new host keys but this unit, where Debian's sshd would not start.
 * FLEET_GUEST_ROOT is for guests that are a folder.
 */
const CLEAN_SCRIPT = `cd "\${FLEET_GUEST_ROOT:-/}" || exit 1
for _ in $(seq 180); do
  case $(systemctl is-system-running 2>/dev/null) in initializing|starting) ;; *) break;; esac
  (exec 3<>/dev/tcp/127.0.0.1/39375) 2>/dev/null && break
  sleep 0.5
done
rm -f root/.worker-auth-token etc/ssh/ssh_host_*_key etc/ssh/ssh_host_*_key.pub
[ -L var/lib/dbus/machine-id ] || rm -f var/lib/dbus/machine-id
[ ! -e etc/machine-id ] || : >etc/machine-id
if [ -d etc/systemd/system ] && [ -x usr/bin/ssh-keygen ]; then
  cat >etc/systemd/system/fleet-ssh-host-keys.service <<'END'
[Unit]
Description=SSH host keys of a new sandbox
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service ssh.socket sshd.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
END
  mkdir -p etc/systemd/system/multi-user.target.wants
  ln -sf ../fleet-ssh-host-keys.service etc/systemd/system/multi-user.target.wants/fleet-ssh-host-keys.service
fi
sync
for left in root/.worker-auth-token etc/ssh/ssh_host_*_key; do [ ! -e "$left" ] || exit 1; done
[ ! -s etc/machine-id ]
`;

/**
 * How the copy is reached: over SSH, its network down; else through the exec daemon, as a machine of its own (MAC
 * address, host name, machine id, token and leased address are not its source's), since the daemon needs the network.
 * Throws `unsupported` where there is neither. To be asked before anything is touched.
 */
export async function wayToClean(run: Run): Promise<"ssh" | "execd"> {
  const { secrets, shell } = run.context;
  if ((await secrets.get(run.sandbox.id)).execToken !== undefined) return "execd"; // as an earlier run has decided
  if (shell !== null) return "ssh";
  const { source } = run.sandbox;
  const { execToken = undefined } = source === undefined ? {} : await secrets.get(source);
  if (execToken !== undefined) {
    await cleaningToken(run);
    return "execd";
  }
  throw new FleetError(
    "unsupported",
    `sandbox ${source} has no exec daemon, so that a copy of it can only be cleaned over SSH: set FLEET_SSH_KEY`,
    { facts: { sandbox: source ?? null, variables: ["FLEET_SSH_KEY"] } },
  );
}

/** A token for the copy's daemon for as long as it is cleaned. */
export async function cleaningToken(run: Run): Promise<string> {
  const { secrets } = run.context;
  const known = await secrets.get(run.sandbox.id);
  if (known.execToken !== undefined) return known.execToken;
  const token = randomBytes(32).toString("hex");
  await run.write({ also: [secrets.toCommand(run.sandbox.id, { execToken: token })] });
  return token;
}

/** Cleans the running copy. May be repeated. Throws `template_unclean` when something could not be removed. */
export async function clean(run: Run, way: "ssh" | "execd"): Promise<void> {
  const code = await run
    .timed("clean", () => (way === "ssh" ? cleanOverSsh(run) : cleanThroughExecd(run)))
    .catch(async (error: unknown) => {
      throw await stopped(run, error);
    });
  if (code === 0) return;
  throw new FleetError("template_unclean", `the copy could not be cleaned: the script ended with exit code ${code}`, {
    facts: { exitCode: code ?? null },
  });
}

/** Stopped again: the next attempt starts it anew. */
async function stopped(run: Run, error: unknown): Promise<unknown> {
  if (!(error instanceof FleetError) || (error.code !== "start_failed" && error.code !== "not_running")) return error;
  await run.write({ sandbox: { state: "configuring" } });
  return new FleetError("start_failed", "the copy stopped before it was cleaned", { cause: error, facts: error.facts });
}

async function cleanOverSsh(run: Run): Promise<number | null | undefined> {
  const { place } = containerOf(run);
  try {
    const ended = await run.context.shell?.run(
      place.node,
      { verb: "exec", vmid: place.vmid, script: CLEAN_SCRIPT, timeoutMs: TIMEOUT_MS },
      { signal: run.signal, guard: run.check },
    );
    return ended?.code;
  } catch (error) {
    throw retried(error, "ssh_unreachable");
  }
}

async function cleanThroughExecd(run: Run): Promise<number> {
  const token = await cleaningToken(run);
  const address = await awaitReady(run, token);
  try {
    const { exitCode } = await run.context.execd.exec({
      address,
      token,
      script: CLEAN_SCRIPT,
      timeoutMs: TIMEOUT_MS,
      keepBytes: 0,
      signal: run.signal,
      guard: run.check,
    });
    return exitCode;
  } catch (error) {
    throw retried(error, "execd_unreachable");
  }
}

/** A script that was cut short may be run again. */
function retried(error: unknown, code: "ssh_unreachable" | "execd_unreachable"): unknown {
  if (!(error instanceof FleetError) || error.code !== "exec_interrupted") return error;
  return new FleetError(code, "the cleaning was cut short", { cause: error, facts: error.facts });
}
