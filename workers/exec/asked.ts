/** What an exec asks for besides its command, with what is sealed. */
import { randomBytes } from "node:crypto";
import { FleetError } from "../../shared/errors.ts";
import type { StreamName } from "../../shared/state/output.ts";
import type { Run } from "../run/run.ts";
import type { LiveOutput } from "./live-output.ts";
import type { As, CommandPlace } from "./shell.ts";

export interface Asked {
  place: CommandPlace;
  as: As | undefined;
  stdin: Buffer | undefined;
  /** The sandbox's. */
  execToken: string | undefined;
  /** Each piece of output as it comes. */
  hear: (stream: StreamName, chunk: string | Buffer) => void;
  /** Throws when there was no way to become the user; the command was not run then. */
  checkUser(): void;
}

export function readAsked(run: Run<"exec">, live: LiveOutput): Asked {
  const { secrets } = run.context;
  const [owner, own] = [
    secrets.openSandbox(run.sandbox.id, run.sealed.sandbox),
    secrets.open(run.id, run.sealed.operation),
  ];
  const { cwd, user } = run.input;
  // Nobody can say it but our own script, before it begins the command.
  const as = user === undefined ? undefined : { user, mark: `fleet-${randomBytes(12).toString("hex")}` };
  let refusal: string | undefined;
  return {
    place: { env: { ...owner.env, ...own.env }, cwd },
    as,
    stdin: own.stdin === undefined ? undefined : Buffer.from(own.stdin, "base64"),
    execToken: owner.execToken,
    hear(stream, chunk) {
      if (as && stream === "stderr" && chunk.toString().startsWith(as.mark)) refusal = chunk.toString();
      else live.add(stream, chunk);
    },
    checkUser() {
      if (refusal !== undefined) throw toUserError(run.sandbox.id, user ?? "", refusal);
    },
  };
}

export function toUserError(sandbox: string, user: string, refusal: string): FleetError {
  const facts = { sandbox, user };
  if (refusal.includes("no_user")) {
    return new FleetError("user_not_found", `sandbox ${sandbox} has no user ${user}`, { facts });
  }
  return new FleetError(
    "unsupported",
    `nothing can run as ${user} there: the exec daemon is not root, or the sandbox has none of runuser, setpriv and su`,
    { facts },
  );
}
