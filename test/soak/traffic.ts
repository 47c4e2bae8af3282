/** Callers of ever new teams who use all that is kept for a while: most kinds of operations, names, pools, branches, batches, files, events, keys. */
import { setTimeout as pause } from "node:timers/promises";
import { type Fleet, FleetError } from "../../producers/index.ts";
import { SandboxId, type ServiceName } from "../../shared/ids.ts";

export interface Traffic {
  operations(): number;
  /** Resolves once nobody asks for anything any more. Throws what the fleet should not have thrown. */
  readonly over: Promise<void>;
}

const VISIT_MS = 8_000;
const WAIT = { timeoutMs: 60_000 };

export function startTraffic(fleet: Fleet, callers: number, signal: AbortSignal): Traffic {
  let operations = 0;
  const done = async <R>(asked: Promise<{ result(options: typeof WAIT): Promise<R> }>): Promise<R> => {
    operations += 1;
    return (await asked).result(WAIT);
  };
  async function visit(name: string, { warm, long }: { warm: boolean; long: boolean }): Promise<void> {
    const handle = fleet.provision(
      {
        template: "cmux-base",
        team: name,
        instanceId: name,
        ...(warm ? {} : { cores: 2 }), // with them, no pool serves it
        ttlSeconds: 60,
        ttlExtendOnUse: true,
        idleSeconds: 600,
        metadata: { name },
        services: [{ name: "web" as ServiceName, port: 8_080 }], // branded by its schema
      },
      { idempotencyKey: name },
    );
    const { sandboxId } = await done(handle);
    for (let at = 0; at < 20; at++)
      await done(
        fleet.exec({ sandboxId, command: "echo hello", env: { A: "1" } }, { idempotencyKey: `${name} ${at}` }),
      );
    await done(fleet.upload({ sandboxId, path: "/tmp/file" }, "x".repeat(1_000)));
    await done(fleet.download({ sandboxId, path: "/tmp/file" }));
    await done(fleet.expose({ sandboxId, name: "api" as ServiceName, port: 8_081 })); // as above
    await done(fleet.hide({ sandboxId, name: "api" as ServiceName })); // as above
    await done(fleet.update({ sandboxId, metadata: { more: name }, ttlSeconds: 90 }));
    await fleet.sandboxes.extend(sandboxId, { seconds: 100 });
    const { snapshotId } = await done(fleet.snapshot({ sandboxId }));
    await done(fleet.delete_snapshot({ sandboxId, snapshotId }));
    await done(fleet.snapshot({ sandboxId }));
    const branch = await fleet.branch({ sandboxId, count: 1 }, { id: `${name}-branch` });
    operations += 1;
    const all: string[] = [sandboxId];
    for await (const copy of branch.results()) {
      if (!copy.ok) throw copy.error;
      all.push(copy.sandboxId);
    }
    const { id: key } = await fleet.keys.create({ team: name, name: "ci", ttlSeconds: 60 });
    if (warm) await fleet.keys.revoke(key);
    if (long) {
      const shell = await fleet.shell({ sandboxId });
      await shell.write("exit\r");
      await done(Promise.resolve(shell));
      const { templateId } = await done(fleet.template({ sandboxId, name }));
      const copy = await done(fleet.provision({ template: templateId, team: name }));
      all.push(copy.sandboxId, templateId);
    }
    await done(fleet.power({ sandboxId, action: "stop" }));
    await done(fleet.exec({ sandboxId, command: "true" })).catch(expected("not_running"));
    const canceled = await fleet.power({ sandboxId, action: "start" });
    await canceled.cancel();
    await done(Promise.resolve(canceled)).catch(expected("canceled"));
    const destroys = all.map((id) => ({ kind: "destroy" as const, input: { sandboxId: SandboxId.parse(id) } }));
    const batch = await fleet.batch(destroys, { id: name });
    operations += 1;
    await batch.result(WAIT);
  }
  const caller = async (at: number) => {
    await pause((at * VISIT_MS) / callers); // one after the other: in step they are told from growth by chance alone
    for (let visits = 0; !signal.aborted; visits++) {
      // At one pace, whatever the machine has to do: else what is kept grows with its speed.
      const how = { warm: visits % 2 === 1, long: (at + visits) % 4 === 0 };
      await Promise.all([visit(`c${at}-${visits}`, how), pause(VISIT_MS)]);
    }
  };
  const consumer = fleet.consume("soak", () => {}, { signal });
  return {
    operations: () => operations,
    over: Promise.all([consumer, ...Array.from({ length: callers }, (_, at) => caller(at))]).then(() => {}),
  };
}

const expected = (code: string) => (error: unknown) => {
  if (!(error instanceof FleetError) || error.code !== code) throw error;
};
