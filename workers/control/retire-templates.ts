/** Templates that newer ones have taken the place of are destroyed, once nothing is linked to them any more. */
import { SandboxId } from "../../shared/ids.ts";
import type { WorkerContext } from "../context.ts";
import { ASK_AGAIN_MS, destroySandbox } from "./expire.ts";
import { forEachRecord } from "./for-each-record.ts";

export async function retireTemplates(context: WorkerContext, now: () => number = Date.now): Promise<void> {
  const { redis, keys, store } = context;
  const retired = await redis.hkeys(keys.retired);
  await forEachRecord(
    context,
    retired.map((id) => ({ id })),
    async ({ id }) => {
      const template = await store.loadSandbox(SandboxId.parse(id));
      // PVE refuses where linked clones need it (not LVM-thin's, nor btrfs'): `template_in_use`, and it is asked again.
      const idempotencyKey = `retire ${id} ${Math.floor(now() / ASK_AGAIN_MS)}`;
      const asked = template?.state === "template" || template?.state === "destroying";
      if (asked && (await destroySandbox(context, template, { idempotencyKey, why: "a newer one has its place" })))
        return;
      await redis.hdel(keys.retired, id);
    },
  );
}
