/**
 * Asks an HTTP server questions on time, whether or not those before are answered, over connections that are kept. A process of
 * its own that does little, so that hardly anything of what it prints is its own: `took`, ms from the moment when it came to a
 * question, though every connection were busy, to its answer; `late`, ms by which it came late to it. Arguments: host, port, a
 * file of questions (headers as JSON), how many a second, seconds of warm-up, seconds.
 */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

const CONNECTIONS = 64;
const [host = "", port = "", file = "", ...plan] = process.argv.slice(2);
const [perSecond = 0, warmUpSeconds = 0, seconds = 0] = plan.map(Number);
const most = perSecond * (warmUpSeconds + seconds);
const questions: Record<string, string>[] = JSON.parse(readFileSync(file, "utf8"));
const requests = questions.map((headers) => {
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  return Buffer.from(`GET / HTTP/1.1\r\n${lines.join("")}\r\n`);
});

interface Question {
  at: number;
  cameMs: number;
}
const free: Socket[] = [];
const waiting: Question[] = [];
const asked = new Map<Socket, Question>();
const took: number[] = [];
const late: number[] = [];
const all = Promise.withResolvers<void>();
let left = most;

function ask(socket: Socket, question: Question): void {
  asked.set(socket, question);
  socket.write(requests[question.at % requests.length] ?? "");
}

function answered(socket: Socket, head: string): void {
  const question = asked.get(socket);
  // Of decisions, which have no body, a small packet each.
  if (question === undefined || !head.startsWith("HTTP/1.1 200 ") || !head.endsWith("\r\n\r\n")) {
    all.reject(new Error(`an answer that was not expected: ${head.slice(0, 300)}`));
    return;
  }
  took[question.at] = performance.now() - question.cameMs;
  if (--left === 0) all.resolve();
  const next = waiting.shift();
  if (next === undefined) free.push(socket);
  else ask(socket, next);
}

const sockets = Array.from({ length: CONNECTIONS }, () => {
  const socket = connect({ host, port: Number(port), noDelay: true });
  socket.on("data", (data) => answered(socket, data.toString("latin1")));
  socket.on("error", all.reject);
  return socket;
});
await Promise.all(sockets.map((socket) => once(socket, "connect")));
free.push(...sockets);
const begunMs = performance.now();
const dueOf = (at: number) => begunMs + (1_000 * at) / perSecond;
const schedule = async () => {
  for (let at = 0; at < most; await delay(1)) {
    const cameMs = performance.now();
    for (; at < most && dueOf(at) <= cameMs; at++) {
      late.push(cameMs - dueOf(at));
      const socket = free.pop();
      if (socket === undefined) waiting.push({ at, cameMs });
      else ask(socket, { at, cameMs });
    }
  }
};
await Promise.all([schedule(), all.promise]);
for (const socket of sockets) socket.destroy();
const counted = (list: number[]) =>
  JSON.stringify(list.slice(perSecond * warmUpSeconds).map((ms) => Number(ms.toFixed(3))));
process.stdout.write(`${JSON.stringify({ took: counted(took), late: counted(late) })}\n`);
