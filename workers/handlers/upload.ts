import { randomBytes } from "node:crypto";
import type { RedisConnection } from "../../shared/redis/connect.ts";
import type { Digest } from "../../shared/state/contents.ts";
import { SPOOL, STAGED, stageOf, toInstallScript, toPieceScript, toUndoScript } from "../exec/file-scripts.ts";
import { tarLength, toTar, WORKSPACE } from "../exec/send-files.ts";
import { toTransferError } from "../exec/transfer-errors.ts";
import { orAbort } from "../or-abort.ts";
import type { Run } from "../run/run.ts";
import { goInside, type Inside } from "../sandbox/inside.ts";
import { stayWithNode } from "./exec.ts";
import type { Handler } from "./handler.ts";

/** How long the sandbox is given to have what an upload left removed. */
const UNDO_MS = 10_000;

/** Any run begins from the start, in a stage of its own; only the last step, a rename, is seen by others. */
export const upload: Handler<"upload"> = {
  async run(run) {
    stayWithNode(run);
    const { path } = run.input;
    const digest = await run.context.contents.digest(run.id, askOf(run));
    await run.begin("sent");
    await goInside(run, run.call, async (inside) => {
      const stage = await run.timed("send", () => send(run, inside, digest));
      const text = toInstallScript(run.id, { stage, sha256: digest.sha256, input: run.input });
      const outcome = await run.timed("install", () => inside.run({ text }));
      if (outcome.exitCode !== 0) throw toTransferError(outcome, path);
    });
    return { result: { path, bytes: digest.bytes } };
  },

  async undo(run) {
    if (run.operation.step === undefined) return { undone: [] };
    const { signal, guard } = run.undoing();
    const text = toUndoScript(run.id, run.input.path);
    const call = { signal: AbortSignal.any([signal, AbortSignal.timeout(UNDO_MS)]), ...(guard ? { guard } : {}) };
    try {
      const { exitCode } = await goInside(run, call, (inside) => inside.run({ text }), { seek: false });
      return { undone: exitCode === 0 ? ["staged content"] : [] };
    } catch (error) {
      signal.throwIfAborted();
      guard?.();
      // Out of reach: the next upload removes it.
      run.log.info({ err: error }, "what was staged in the sandbox could not be removed");
      return { undone: [] };
    }
  },
};

/** Requests to Redis that the run's end cuts short. */
export const askOf =
  ({ context, signal }: Run) =>
  <T>(request: (redis: RedisConnection) => Promise<T>): Promise<T> =>
    orAbort(request(context.redis), signal);

/** Brings the content into the sandbox; returns the folder that it lies in. */
async function send(run: Run<"upload">, inside: Inside, { bytes }: Digest): Promise<string> {
  const name = stageOf(run.id, randomBytes(6).toString("hex"));
  const content = () => run.context.contents.read(run.id, askOf(run));
  if (await inside.unpack(toTar(name, STAGED, content(), bytes), tarLength(bytes))) return `${WORKSPACE}/${name}`;
  const stage = `${SPOOL}/${name}`;
  const text = toPieceScript(stage);
  for await (const stdin of inParts(content(), inside.stdinLimit)) {
    const outcome = await inside.run({ text, stdin });
    if (outcome.exitCode !== 0) throw toTransferError(outcome, run.input.path);
  }
  return stage;
}

/** At least one, so that an empty content is brought, too. */
async function* inParts(content: AsyncIterable<Buffer>, limit: number): AsyncGenerator<Buffer> {
  let part: Buffer = Buffer.alloc(0);
  for await (const piece of content) {
    part = Buffer.concat([part, piece]);
    for (; part.length > limit; part = part.subarray(limit)) yield part.subarray(0, limit);
  }
  yield part;
}
