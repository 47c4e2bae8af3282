/** Slots whose holder gives no sign of life: something may wait for them in vain. */
import type { OperationId } from "../../shared/ids.ts";
import type { Inventory } from "../../shared/state/inventory.ts";
import { isTaskHolder } from "../../shared/state/slots.ts";
import type { WorkerContext } from "../context.ts";
import { slotsOf } from "../control/reap-slots.ts";

export interface StaleSlot {
  name: string;
  operation: OperationId;
}

/** Tasks that hold one are left out: they renew nothing, and are proven ended one by one. */
export async function findStale({ slots }: WorkerContext, inventory: Inventory): Promise<StaleSlot[]> {
  const found = await Promise.all(
    slotsOf(inventory).map(async ({ name }) => (await slots.expired(name)).map((holder) => ({ name, holder }))),
  );
  return found.flat().flatMap(({ name, holder }) => (isTaskHolder(holder) ? [] : [{ name, operation: holder }]));
}
