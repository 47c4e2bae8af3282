/** Commands that change a sandbox and wait for it. */
import { Argument, type Command, Option } from "commander";
import { type IdleAction, ServiceAuth, type TtlAction } from "../../../shared/jobs/fields.ts";
import type { Handle, JobName, JobOutput, SandboxId } from "../../index.ts";
import { formatTime } from "../describe.ts";
import { EXIT, toExitCode } from "../exit-codes.ts";
import { collect, collectPairs, parseDurationSec, parseNumber } from "../parse-values.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import { type Cli, describeError, formatError, type GlobalOptions, type Session } from "../session.ts";
import {
  addResourceOptions,
  addWaitOptions,
  idleActionOption,
  type ResourceOptions,
  toResources,
  toSubmitOptions,
  ttlActionOption,
  type WaitOptions,
  withoutUndefined,
} from "./shared-options.ts";

export const SANDBOX = "sandbox id, or its VMID or hostname";

/** Begins one operation and prints its result, or with --no-wait its id. */
export async function change<N extends JobName>(
  session: Session,
  options: WaitOptions,
  ask: () => Promise<Handle<N>>,
  describe: (result: JobOutput<N>) => string,
): Promise<undefined> {
  const handle = await session.operations.begin(ask);
  if (!options.wait) {
    session.print({ operationId: handle.id, sandboxId: handle.sandboxId }, `${handle.id}\n`);
    return;
  }
  const result = await session.operations.result(handle, options.waitTimeout);
  session.print(result, `${describe(result)}\n`);
}

const READY_PROBES = ["tcp", "http"] as const;

export function addServices(program: Command, cli: Cli): void {
  const expose = addWaitOptions(program.command("expose"))
    .description("Give a port of a sandbox a name and a URL.")
    .argument("<sandbox>", SANDBOX)
    .argument("<name>", "service name; becomes part of the URL")
    .argument("<port>", "port that the service listens on", parseNumber)
    .addOption(new Option("--auth <who>", "who gets in at a public URL (link)").choices(ServiceAuth.options))
    .addOption(new Option("--ready <probe>", "wait until it was seen to answer").choices(READY_PROBES))
    .addHelpText("after", "\nExample:\n  fleet expose sbx_... web 8080")
    .action(async (sandbox: string, name: string, port: number) => {
      type Options = WaitOptions & { auth?: ServiceAuth; ready?: (typeof READY_PROBES)[number] };
      const { auth, ready: waitUntilReady, ...options } = expose.optsWithGlobals<Options>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        const input = { sandboxId, name, port, ...withoutUndefined({ auth, waitUntilReady }) };
        const ask = () => session.fleet.expose(input, toSubmitOptions(options));
        return change(session, options, ask, ({ url }) => url);
      });
    });
  const hide = addWaitOptions(program.command("hide"))
    .description("Take a service's URL away.")
    .argument("<sandbox>", SANDBOX)
    .argument("<name>", "service name")
    .action(async (sandbox: string, name: string) => {
      const options = hide.optsWithGlobals<WaitOptions>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        const ask = () => session.fleet.hide({ sandboxId, name }, toSubmitOptions(options));
        return change(session, options, ask, ({ hidden }) => (hidden ? `hid ${name}` : `there was no service ${name}`));
      });
    });
}

const ACTIONS = ["start", "stop", "shutdown", "reboot", "pause", "resume"] as const;

export function addPower(program: Command, cli: Cli): void {
  const command = addWaitOptions(program.command("power"))
    .description(
      "Start, stop, shut down or reboot a sandbox; pause and resume it. stop is hard and at once; shutdown asks the guest; " +
        "pause keeps the memory, and needs SSH to the nodes.",
    )
    .argument("<sandbox>", SANDBOX)
    .addArgument(new Argument("<action>", "what to do").choices(ACTIONS))
    .option("--grace <duration>", "for shutdown and reboot: time that the guest gets (30s)", parseDurationSec)
    .option("--no-force", "for shutdown: fail instead of stopping hard when the guest did not obey in time")
    .option(
      "--allow-stop",
      "for pause and resume where SSH is not set up: stop and start instead, which loses the memory",
    )
    .action(async (sandbox: string, action: (typeof ACTIONS)[number]) => {
      const options = command.optsWithGlobals<WaitOptions & { grace?: number; force: boolean; allowStop?: boolean }>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        const { grace, force, allowStop } = options;
        const allow = allowStop === undefined ? {} : { allowStop };
        const input = { sandboxId, action, force, ...allow, ...(grace === undefined ? {} : { graceSec: grace }) };
        const describe = ({ state, changed }: JobOutput<"power">) => (changed ? state : `${state} already`);
        return change(session, options, () => session.fleet.power(input, toSubmitOptions(options)), describe);
      });
    });
}

export function addConfigure(program: Command, cli: Cli): void {
  const command = addWaitOptions(addResourceOptions(program.command("configure")))
    .description("Change the resources of a live sandbox.")
    .argument("<sandbox>", SANDBOX)
    .addHelpText("after", "\nExample:\n  fleet configure sbx_... --cores 4 --memory 8192")
    .action(async (sandbox: string) => {
      const options = command.optsWithGlobals<WaitOptions & ResourceOptions>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        const ask = () => session.fleet.configure({ sandboxId, ...toResources(options) }, toSubmitOptions(options));
        return change(session, options, ask, ({ applied, pendingUntilReboot: pending }) => {
          const now = Object.entries(applied).map(([name, value]) => `${name}=${value}`);
          return [...now, ...(pending.length > 0 ? [`(${pending.join(", ")} at the next start)`] : [])].join(" ");
        });
      });
    });
}

interface UpdateOptions {
  metadata?: Record<string, string>;
  removeMetadata?: string[];
  replaceMetadata?: boolean;
  ttl?: number | false;
  extend?: number;
  ttlAction?: TtlAction;
  ttlExtendOnUse?: boolean;
  idle?: number | false;
  idleAction?: IdleAction;
  wakeOnHttp?: boolean;
}

export function addUpdate(program: Command, cli: Cli): void {
  const command = addWaitOptions(program.command("update"))
    .description(
      "Change what is kept of a sandbox: metadata, TTL, idle pause, wake-on-HTTP. Its container stays as it is.",
    )
    .argument("<sandbox>", SANDBOX)
    .option("--metadata <key=value>", "set this entry; repeatable", collectPairs)
    .option("--remove-metadata <key>", "take this entry away; repeatable", collect)
    .option("--replace-metadata", "take away all entries that are not given")
    .option("--ttl <duration>", "its time is up this long from now", parseDurationSec)
    .option("--no-ttl", "its time is never up")
    .addOption(
      new Option("--extend <duration>", "as --ttl, but only ever later than it is")
        .argParser(parseDurationSec)
        .conflicts("ttl"),
    )
    .addOption(ttlActionOption())
    .option("--ttl-extend-on-use", "each use moves its end to the length of its TTL after it")
    .option("--no-ttl-extend-on-use", "uses do not move its end")
    .option("--idle <duration>", "it is idle after so long without requests, commands and transfers", parseDurationSec)
    .option("--no-idle", "it may be idle for ever")
    .addOption(idleActionOption())
    .option("--wake-on-http", "requests wake it")
    .option("--no-wake-on-http", "requests do not wake it")
    .addHelpText("after", "\nExamples:\n  fleet update 20001 --metadata run=43\n  fleet update 20001 --extend 2h")
    .action(async (sandbox: string) => {
      const options = command.optsWithGlobals<WaitOptions & UpdateOptions>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        const ask = () => session.fleet.update({ sandboxId, ...toUpdate(options) }, toSubmitOptions(options));
        return change(session, options, ask, ({ expiresAt, ttlAction }) =>
          expiresAt === null ? "updated" : `updated; ${ttlAction} at ${new Date(expiresAt).toISOString()}`,
        );
      });
    });
}

function toUpdate({
  metadata,
  removeMetadata = [],
  replaceMetadata,
  ttl,
  extend,
  ttlAction,
  ttlExtendOnUse,
  idle,
  idleAction,
  wakeOnHttp,
}: UpdateOptions) {
  const removed = Object.fromEntries(removeMetadata.map((key) => [key, null]));
  const touched = metadata !== undefined || removeMetadata.length > 0 || replaceMetadata === true;
  return withoutUndefined({
    metadata: touched ? { ...metadata, ...removed } : undefined,
    replaceMetadata,
    ttlSeconds: ttl === false ? null : (ttl ?? extend),
    extend: extend === undefined ? undefined : true,
    ttlAction,
    ttlExtendOnUse,
    idleSeconds: idle === false ? null : idle,
    idleAction,
    wakeOnHttp,
  });
}

export function addExtend(program: Command, cli: Cli): void {
  const command = program
    .command("extend")
    .description("Let a sandbox live at least so long from now on, if its TTL would end it before.")
    .argument("<sandbox>", SANDBOX)
    .argument("<duration>", "such as 90s, 30m or 2h", parseDurationSec)
    .addHelpText("after", "\nExample:\n  fleet extend 20001 2h")
    .action(async (sandbox: string, seconds: number) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const id = await resolveSandbox(sandbox, fleet.sandboxes);
        const { expiresAt } = await fleet.sandboxes.extend(id, { seconds });
        const text = expiresAt === null ? "it has no end" : `its time is up at ${formatTime(expiresAt)}`;
        print({ sandboxId: id, expiresAt }, `${text}\n`);
        return undefined;
      });
    });
}

export function addDestroy(program: Command, cli: Cli): void {
  const command = addWaitOptions(program.command("destroy"))
    .description("Destroy sandboxes and everything of them, whatever they are doing.")
    .argument("<sandbox...>", `${SANDBOX}; several at once`)
    .addHelpText("after", "\nExamples:\n  fleet destroy sbx_...\n  fleet destroy $(fleet ls -q --metadata run=42)")
    .action(async (names: string[]) => {
      const options = command.optsWithGlobals<WaitOptions>();
      await cli.run(options, async (session) => {
        // All names are resolved before the first is touched: a typing error destroys nothing.
        const ids = await Promise.all(names.map((name) => resolveSandbox(name, session.fleet.sandboxes)));
        return destroyAll(session, ids, options);
      });
    });
}

export async function destroyAll(session: Session, ids: readonly SandboxId[], options: WaitOptions): Promise<number> {
  const { idempotencyKey: key } = options;
  const destroyOne = async (sandboxId: SandboxId) => {
    const idempotencyKey = key === undefined || ids.length === 1 ? key : `${key}/${sandboxId}`;
    return session.operations.begin(() => session.fleet.destroy({ sandboxId }, { idempotencyKey }));
  };
  const begun = await Promise.allSettled([...new Set(ids)].map(destroyOne));
  const handles = begun.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  const errors: unknown[] = begun.flatMap((one) => (one.status === "rejected" ? [one.reason] : []));
  const ended = options.wait ? await session.operations.results(handles, options.waitTimeout) : [];
  const values = handles.map(({ id, sandboxId }, index) => {
    const outcome = ended[index];
    const about = { sandboxId, operationId: id };
    if (!outcome) return { value: about, text: `${id}\n` };
    if (outcome.ok) {
      return {
        value: { ...about, ...outcome.value },
        text: `${outcome.value.existed ? "destroyed" : "was gone"} ${sandboxId}\n`,
      };
    }
    errors.push(outcome.error);
    const { code, text, facts } = describeError(outcome.error);
    return { value: { ...about, error: { code, message: text, facts } }, text: "" };
  });
  session.print(
    values.map(({ value }) => value),
    values.map(({ text }) => text).join(""),
  );
  for (const error of errors) session.terminal.err(formatError(session.reword(error), session.json));
  return errors.length === 0 ? EXIT.ok : toExitCode(errors[0]);
}
