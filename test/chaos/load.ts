/** Producers that go on whatever happens to workers, and a ledger of what became of all that they asked for. */
import type { AnyHandle, Fleet, JobInput } from "../../producers/index.ts";

/** Everything that was asked for, with what became of it. */
export class Ledger {
  readonly accepted: string[] = [];
  readonly failures: string[] = [];

  /** Undefined where it failed. */
  async take<H extends AnyHandle>(asked: Promise<H>) {
    const handle = await asked;
    this.accepted.push(handle.id);
    try {
      return (await handle.result()) as Awaited<ReturnType<H["result"]>>; // the handle's own result
    } catch (error) {
      this.failures.push(`${handle.kind} ${handle.id}: ${String(error)}`);
      return undefined;
    }
  }
}

export interface Load {
  template: string;
  /** Producers at once; those beside the first team's send batches, too. */
  producers: number;
  isOver: () => boolean;
}

/** Resolves once it is over and all that was asked for has ended. */
export async function produceLoad(
  [first, ...others]: readonly [Fleet, ...Fleet[]],
  ledger: Ledger,
  { template, producers, isOver }: Load,
): Promise<void> {
  const teams = [first, ...others];
  const input: JobInput<"provision"> = { template };
  await Promise.all([
    ...Array.from({ length: producers }, (_, at) => produce(teams[at % teams.length] ?? first, ledger, input, isOver)),
    ...others.map((fleet) => produceBatches(fleet, ledger, input, isOver)),
  ]);
}

async function produce(fleet: Fleet, ledger: Ledger, input: JobInput<"provision">, isOver: () => boolean) {
  while (!isOver()) {
    const sandbox = await ledger.take(fleet.provision(input));
    if (sandbox === undefined) continue;
    const { sandboxId } = sandbox;
    await Promise.all([
      ledger.take(fleet.expose({ sandboxId, name: "web" as never, port: 8_080 })), // branded by its schema
      ...["0", "0.3", "1"].map((seconds) => ledger.take(fleet.exec({ sandboxId, command: `sleep ${seconds}` }))),
    ]);
    await ledger.take(fleet.destroy({ sandboxId }));
  }
}

async function produceBatches(fleet: Fleet, ledger: Ledger, input: JobInput<"provision">, isOver: () => boolean) {
  while (!isOver()) {
    const made: JobInput<"destroy">[] = [];
    const provisions = await fleet.batch({ ...input, priority: "batch", count: 10 });
    for await (const item of provisions.results()) {
      if (item.ok) made.push({ sandboxId: item.sandboxId });
      else ledger.failures.push(`item ${item.index}: ${item.error.message}`);
    }
    await Promise.all(made.map((one) => ledger.take(fleet.destroy(one))));
  }
}
