import { serviceField } from "../../shared/state/records.ts";
import type { Handler } from "./handler.ts";

/** Legal in every state of the sandbox: taking a URL away needs no container. */
export const hide: Handler<"hide"> = {
  async run(run) {
    const { name } = run.input;
    const hidden = run.sandbox.services.some((service) => service.name === name);
    const key = run.context.keys.sandbox(run.sandbox.id);
    return { result: { name, hidden }, write: hidden ? { also: [["HDEL", key, serviceField(name)]] } : {} };
  },
};
