import type { Dispatcher } from "undici";

/** One answer of PVE, whatever its status. */
export interface Answer {
  status: number;
  /** The reason phrase: before 2025 PVE's only place for the text of an error. */
  reason: string;
  /** Where a redirect points; "" for none. */
  location: string;
  body: string;
}

/** An exchange that ended without an answer. */
export class BrokenExchange extends Error {
  override readonly name = "BrokenExchange";
  /** false: not a byte of the request was written, so that it was certainly not executed. */
  readonly sent: boolean;

  constructor(sent: boolean, cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause });
    this.sent = sent;
  }
}

export interface ExchangeOptions {
  signal: AbortSignal;
  /** Called right before the request is written to a connection, however long it waited for one. May throw. */
  guard?: () => void;
  maxBodyBytes: number;
}

/**
 * Sends one request and reads its answer. Throws BrokenExchange; what the guard throws comes through as it is.
 * On undici's handlers rather than `request()`, since these alone tell when the request goes out.
 */
export function exchange(
  dispatcher: Dispatcher,
  request: Dispatcher.DispatchOptions,
  options: ExchangeOptions,
): Promise<Answer> {
  const { signal, guard, maxBodyBytes } = options;
  return new Promise((resolve, reject) => {
    let sent = false;
    let refused: { by: unknown } | undefined;
    let controller: Dispatcher.DispatchController | undefined;
    const answer: Answer = { status: 0, reason: "", location: "", body: "" };
    const chunks: Buffer[] = [];
    let bytes = 0;

    const onAbort = () => {
      controller?.abort(toError(signal.reason));
      // A request that still waits for a connection has no controller; `onRequestStart` takes it back later.
      fail(signal.reason);
    };
    const fail = (cause: unknown) => {
      signal.removeEventListener("abort", onAbort);
      reject(refused ? refused.by : new BrokenExchange(sent, cause));
    };
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) return fail(signal.reason);

    dispatcher.dispatch(request, {
      onRequestStart(started) {
        if (signal.aborted) throw toError(signal.reason);
        try {
          guard?.();
        } catch (by) {
          refused = { by };
          throw by;
        }
        controller = started;
        sent = true;
      },
      onResponseStart(_, status, headers, reason) {
        answer.status = status;
        answer.reason = reason ?? "";
        answer.location = String(headers["location"] ?? "");
      },
      onResponseData(current, chunk) {
        bytes += chunk.length;
        if (bytes > maxBodyBytes) current.abort(new Error(`an answer of more than ${maxBodyBytes / 1_048_576} MiB`));
        else chunks.push(chunk);
      },
      onResponseEnd() {
        signal.removeEventListener("abort", onAbort);
        resolve({ ...answer, body: Buffer.concat(chunks).toString("utf8") });
      },
      onResponseError(_, error) {
        fail(error);
      },
    });
  });
}

function toError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}
