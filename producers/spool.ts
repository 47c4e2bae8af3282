/** An upload's content on its way into Redis, before its operation is asked for. */
import { FleetError } from "../shared/errors.ts";
import type { SandboxId } from "../shared/ids.ts";
import type { Digest } from "../shared/state/contents.ts";
import { isGone } from "../shared/state/records.ts";
import type { Parts } from "./parts.ts";

/** A whole content, or one that comes bit by bit: a Node or web stream, an async generator. Texts are UTF-8. */
export type ContentSource = string | Uint8Array | AsyncIterable<string | Uint8Array>;

/** Keeps the content for operation `owner`. Throws what the source throws, and as `ContentWriter` does. */
export async function spool(parts: Parts, owner: string, content: ContentSource | undefined): Promise<Digest> {
  const writer = parts.contents.write(owner, { ask: parts.link.request });
  for await (const chunk of typeof content === "string" || content instanceof Uint8Array ? [content] : check(content)) {
    if (typeof chunk !== "string" && !(chunk instanceof Uint8Array)) throw noContent();
    await writer.add(typeof chunk === "string" ? Buffer.from(chunk) : chunk);
  }
  return writer.end();
}

function check<T>(content: AsyncIterable<T> | undefined): AsyncIterable<T> {
  if (typeof content === "object" && content !== null && Symbol.asyncIterator in content) return content;
  throw noContent();
}

const noContent = () =>
  new FleetError("invalid_input", "content: must be a text, bytes, or a stream of them", {
    facts: { fields: ["content"] },
  });

/** Refused by ACCEPT all the same; said before the content has travelled in vain. */
export async function assertSandbox(parts: Parts, id: SandboxId): Promise<void> {
  const sandbox = await parts.link.request(() => parts.store.loadSandbox(id));
  const facts = { sandbox: id };
  if (!sandbox || (parts.team !== undefined && sandbox.team !== parts.team)) {
    throw new FleetError("sandbox_not_found", `there is no sandbox ${id}`, { facts });
  }
  if (isGone(sandbox.state)) throw new FleetError("sandbox_gone", `sandbox ${id} has ended`, { facts });
}
