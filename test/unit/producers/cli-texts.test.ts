import { EventEmitter } from "node:events";
import { Readable } from "node:stream";
import { expect, test, vi } from "vitest";
import { createPace, toBatchLine } from "../../../producers/cli/batch-texts.ts";
import { toLeft } from "../../../producers/cli/commands/nodes.ts";
import { formatBytes, formatDuration, toEventLine } from "../../../producers/cli/describe.ts";
import { Interrupted, toExitCode } from "../../../producers/cli/exit-codes.ts";
import { toLines } from "../../../producers/cli/job-lines.ts";
import { toProgressLine } from "../../../producers/cli/progress.ts";
import { formatError } from "../../../producers/cli/session.ts";
import { createTerminal, formatFacts, formatTable, toPrintable } from "../../../producers/cli/terminal.ts";
import { FleetError } from "../../../shared/errors.ts";
import { OperationId, SandboxId, TeamId } from "../../../shared/ids.ts";

const plain = (_: unknown, text: string) => text;

test("a table is plain columns, without trailing spaces", () => {
  expect(
    formatTable(
      ["NAME", "N"],
      [
        ["a", "1"],
        ["long-name", "22"],
        ["b", ""],
      ],
    ),
  ).toBe("NAME       N\na          1\nlong-name  22\nb\n");
  expect(formatTable(["NAME", "N"], [])).toBe("NAME  N\n");
});

test("a coloured cell is as wide as its text", () => {
  const rows = [
    ["\u001b[32mok\u001b[39m", "1"],
    ["failed", "2"],
  ];
  const lines = formatTable(["STATE", "N"], rows).split("\n");
  expect(lines).toEqual(["STATE   N", "\u001b[32mok\u001b[39m      1", "failed  2", ""]);
});

test("what a guest or user wrote can't drive the terminal or break a line", () => {
  expect(toPrintable("a\u001b[2Jb\u001b]0;x\u0007\r\nc\u009b1m")).toBe("a [2Jb ]0;x   c 1m");
  expect(formatTable(["A"], [["x\ny\u001b[H"]])).toBe("A\nx y [H\n");
  expect(
    formatFacts([
      ["key\n", "v\r"],
      ["k", "w"],
    ]),
  ).toBe("key   v \nk     w\n");
});

function streams(isTTY: boolean) {
  const make = () => Object.assign(new EventEmitter(), { isTTY, write: vi.fn() });
  return { stdout: make(), stderr: make() };
}

test.each([
  [true, {}, true],
  [true, { NO_COLOR: "1" }, false],
  [true, { NO_COLOR: "" }, true],
  [false, {}, false],
])("terminal %j with %j: colours %j", (isTTY, env, coloured) => {
  const terminal = createTerminal(streams(isTTY), env, () => {});
  expect(terminal.paint("green", "ok")).toBe(coloured ? "\u001b[32mok\u001b[39m" : "ok");
  expect(terminal.watched).toBe(isTTY);
});

test("a line that is redrawn is cut to the terminal's width, whatever that is now", () => {
  const { stdout, stderr } = streams(true);
  const narrow = Object.assign(stderr, { columns: 10 });
  const terminal = createTerminal({ stdout, stderr }, {}, () => {});
  terminal.redraw("0123456789");
  narrow.columns = 20;
  terminal.redraw("0123456789");
  expect(stderr.write.mock.calls).toEqual([["\r\u001b[K012345678"], ["\r\u001b[K0123456789"]]);
});

test("a reader that went ends it quietly; any other trouble with a stream does not", () => {
  const exit = vi.fn();
  const { stdout, stderr } = streams(false);
  createTerminal({ stdout, stderr }, {}, exit);
  stdout.emit("error", Object.assign(new Error("write EPIPE"), { code: "EPIPE" }));
  expect(exit).toHaveBeenCalledWith(141);
  expect(() => stderr.emit("error", Object.assign(new Error("io"), { code: "EIO" }))).toThrow("io");
});

test.each([
  [0, "0.00s"],
  [312, "0.31s"],
  [59_400, "59s"],
  [61_000, "1m 1s"],
  [3_600_000, "1h 0m"],
  [93_784_000, "1d 2h"],
])("%i ms read as %s", (ms, text) => expect(formatDuration(ms)).toBe(text));

test("bytes", () => {
  expect([0, 1_023, 1_536, 2 ** 40].map(formatBytes)).toEqual(["0 B", "1023 B", "1.5 KiB", "1.0 TiB"]);
});

test("progress of a batch: a bar where it is redrawn, its pace of late, time left", () => {
  const counts = { total: 200, queued: 140, running: 4, succeeded: 50, failed: 6, canceled: 0, failedByCode: {} };
  const view = { status: "running", counts, size: 200 } as never; // what of it is shown
  const pace = createPace();
  const at = (now: number, succeeded: number) => pace.at(now, { ...counts, succeeded });
  expect([at(0, 0), at(1_000, 10), at(2_000, 30), at(42_000, 50)].map(Math.round)).toEqual([0, 10, 15, 1]);
  expect(toBatchLine(view, 4.8, 100)).toBe(
    "[######------------------] 56 of 200 (28%), 4.8/s, 30s left, 4 running, 6 failed",
  );
  expect(toBatchLine(view, 60, 66)).toBe("[##--------] 56 of 200 (28%), 60.0/s, 3s left, 4 running, 6 failed");
  expect(toBatchLine(view, 60, 60)).toBe("56 of 200 (28%), 60.0/s, 3s left, 4 running, 6 failed");
  expect(toBatchLine(view, 60, 39)).toBe("56 of 200 (28%), 3s left, 6 failed"); // nothing is cut in the middle
  expect(toBatchLine(view, 60, 30)).toBe("56 of 200 (28%), 6 failed");
  expect(toBatchLine(view, 0, 0)).toBe("56 of 200 (28%), 4 running, 6 failed");
  expect(toBatchLine({ ...(view as object), size: undefined } as never, 2, 79)).toBe(
    "56 of 200 so far, 2.0/s, 4 running, 6 failed",
  );
});

test("lines: across chunks, without a last newline, and none that is too long", async () => {
  const chunks = ["a\nb", "c\n\nd", "x".repeat(5_000_000), "\ne"].map((chunk) => Buffer.from(chunk));
  const lines: (string | null)[] = [];
  for await (const line of toLines(Readable.from(chunks))) lines.push(line);
  expect(lines).toEqual(["a", "bc", "", null, "e"]);
});

test("progress: one sandbox by name, many by count", () => {
  const first = { kind: "provision", sandboxId: "sbx_1" } as const;
  expect(toProgressLine(first, ["cloning"])).toBe("provision sbx_1: cloning");
  expect(toProgressLine(first, ["cloning", "ended", "cloning"])).toBe("provision of 3: 2 cloning, 1 ended");
});

test("an event is one line with time and cursor in front", () => {
  const event = {
    cursor: "17-0",
    at: 0,
    sandbox: SandboxId.parse("sbx_0000000000000000"),
    operation: OperationId.parse("op_0000000000000000"),
    team: TeamId.parse("red"),
    type: "sandbox.changed" as const,
    data: { before: "cloning" as const, state: "starting" as const, node: "pve1", vmid: 20_000 },
  };
  expect(toEventLine(event, plain)).toBe(
    "1970-01-01T00:00:00.000Z  17-0  sbx_0000000000000000  op_0000000000000000  sandbox.changed  cloning -> starting on pve1 as 20000",
  );
});

test("errors: one line, or one JSON value; and their exit codes", () => {
  const error = new FleetError("storage_full", "local\nis full", { facts: { node: "pve1" } });
  expect(formatError(error, false)).toBe("fleet: storage_full: local is full\n");
  expect(JSON.parse(formatError(error, true))).toEqual({
    error: { code: "storage_full", message: "local\nis full", facts: { node: "pve1" } },
  });
  expect(formatError(new TypeError("x is no function"), false)).toBe("fleet: internal: TypeError: x is no function\n");
  const codes = ["storage_full", "invalid_input", "idempotency_conflict", "not_configured", "timeout"] as const;
  expect(codes.map((code) => toExitCode(new FleetError(code, "")))).toEqual([1, 2, 2, 2, 124]);
  expect([toExitCode(new Interrupted("")), toExitCode(new Error(""))]).toEqual([130, 1]);
});

test("what a drain still waits for", () => {
  const left = (sandboxes: number, operations: number) =>
    toLeft("pve2", { sandboxes: Array.from({ length: sandboxes }), operations } as never); // only counted
  expect([left(0, 0), left(1, 2), left(3, 1)]).toEqual([
    "pve2: empty",
    "pve2: 1 sandbox and 2 operations left",
    "pve2: 3 sandboxes and 1 operation left",
  ]);
});
