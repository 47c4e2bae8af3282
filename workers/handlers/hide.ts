import { serviceField } from "../../shared/state/records.ts";
import type { Handler } from "./handler.ts";

/** Legal in every state of the sandbox: taking a URL away needs no container. */
export const hide: Handler<"hide"> = {
  async run(run) {
    const { name } = run.input;
    const hidden = run.sandbox.services.some((service) => service.name === name);
    const { keys } = run.context;
    const { id } = run.sandbox;
    const also = [
      ["HDEL", keys.sandbox(id), serviceField(name)],
      ["SADD", keys.restamp, id],
    ];
    return { result: { name, hidden }, write: hidden ? { also } : {} };
  },
};
