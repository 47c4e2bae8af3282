/** A sandbox decides itself what it sends, and how: however small the pieces, they cost the worker little more than their bytes. */
import { expect, test } from "vitest";
import { createReply } from "../../../workers/exec/exec-reply.ts";
import { createLiveOutput } from "../../../workers/exec/live-output.ts";
import { createLines } from "../../../workers/sandbox/inside.ts";

const PIECES = 200_000;

test("a line of execd that never ends, byte by byte, is cut off before its pieces fill the memory", () => {
  const reply = createReply({ keepBytes: 1_000 });
  const piece = Buffer.from("x");
  const send = () => {
    for (let sent = 0; sent < PIECES; sent++) reply.add(piece);
  };
  expect(send).toThrow("an endless line");
});

test("live output that changes between the streams with each byte: the oldest goes, and the last is there", async () => {
  const live = createLiveOutput(() => new Promise(() => {}));
  for (let sent = 0; sent < PIECES; sent++) live.add(sent % 2 === 0 ? "stdout" : "stderr", "x");
  const rest = (await live.close()).flatMap(({ pieces }) => pieces);
  expect(rest.length).toBeGreaterThan(1_000);
  expect(rest.length).toBeLessThan(10_000);
  expect(rest.at(-1)).toEqual({ stream: "stderr", text: "x" });
});

test("lines over SSH are those that were sent, wherever they were cut; a long one is not read anew with each piece", async () => {
  const seen: string[] = [];
  const lines = createLines((line) => void seen.push(line));
  const long = "x".repeat(8_000_000);
  for (const text of ["o", "ne\ntw", "o\n\n", "three", "\n"]) lines.add(Buffer.from(text));
  for (let at = 0; at < long.length; at += 400) lines.add(Buffer.from(long.slice(at, at + 400)));
  lines.add(Buffer.from("\nrest"));
  await lines.done();
  expect(seen).toEqual(["one", "two", "", "three", long]);
});
