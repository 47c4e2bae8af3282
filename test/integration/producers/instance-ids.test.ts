/** Names that callers give their sandboxes: the same name is the same sandbox, for as long as it lives. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type RedisServer, startRedis } from "../../redis.ts";
import { createRig, type Rig } from "./rig.ts";

let server: RedisServer;
let rig: Rig;
beforeAll(async () => {
  server = await startRedis();
  rig = createRig(server);
});
afterAll(async () => {
  await rig[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

const NAMED = { template: "base", instanceId: "pvelxc-1a2b3c4d", metadata: { a: "1", b: "2" } };

test("the same name and input is the same sandbox, however often and at once, also when its operation is forgotten", async () => {
  const again = { ...NAMED, metadata: { b: "2", a: "1" }, clone: "linked" as const };
  const handles = await Promise.all([rig.fleet.provision(NAMED), rig.client().provision(again)]);
  const [{ id, sandboxId }] = handles;
  expect(handles[1]).toMatchObject({ id, sandboxId });
  expect(await rig.fleet.sandboxes.get(NAMED.instanceId)).toMatchObject({
    id: sandboxId,
    instanceId: NAMED.instanceId,
  });
  await rig.store.end(await rig.claim(id), { status: "succeeded", result: {} }, { sandbox: { state: "running" } });
  await rig.redis.del(rig.keys.operation(id));
  expect(await rig.fleet.provision(NAMED)).toMatchObject({ id, sandboxId });
  expect(await rig.fleet.sandboxes.list()).toHaveLength(1);
});

test("other input is refused, as is another team, who learns nothing of it", async () => {
  const { id } = await rig.fleet.sandboxes.get(NAMED.instanceId);
  await expect(rig.fleet.provision({ ...NAMED, template: "other" })).rejects.toMatchObject({
    code: "idempotency_conflict",
    text: expect.stringContaining(id),
    facts: { sandbox: id },
  });
  const red = rig.client({ team: "red" });
  await expect(red.provision(NAMED)).rejects.toMatchObject({
    code: "idempotency_conflict",
    text: "this instance id is taken; choose another",
    facts: {},
  });
  await expect(red.sandboxes.get(NAMED.instanceId)).rejects.toMatchObject({ code: "sandbox_not_found" });
  await expect(rig.fleet.provision({ ...NAMED, instanceId: "20001" })).rejects.toMatchObject({ code: "invalid_input" });
});

test("while it is being destroyed there is neither; then the name is free for a new sandbox", async () => {
  const { id } = await rig.fleet.sandboxes.get(NAMED.instanceId);
  const destroy = await rig.fleet.destroy({ sandboxId: id });
  const writer = await rig.claim(destroy.id);
  await rig.store.write(writer, { sandbox: { state: "destroying" } });
  await expect(rig.fleet.provision(NAMED)).rejects.toMatchObject({ code: "sandbox_gone" });
  await rig.store.end(writer, { status: "succeeded", result: {} }, { sandbox: { state: "destroyed" } });
  await expect(rig.fleet.sandboxes.get(NAMED.instanceId)).rejects.toMatchObject({ code: "sandbox_not_found" });
  const red = await rig.client({ team: "red" }).provision(NAMED);
  expect(red.sandboxId).not.toBe(id);
  expect(await rig.redis.hgetall(rig.keys.instances)).toEqual({ [NAMED.instanceId]: red.sandboxId });
});
