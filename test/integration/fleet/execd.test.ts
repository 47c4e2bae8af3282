/** The exec daemon's client against servers that do what a rebooted, a hung or a slow guest does. */
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { Socket } from "node:net";
import { Readable } from "node:stream";
import { setImmediate as nextTurn } from "node:timers/promises";
import { afterEach, describe, expect, test } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { EXECD_PORT } from "../../../shared/jobs/fields.ts";
import { createExecd, type ExecCall } from "../../../workers/exec/execd.ts";
import { sendFiles } from "../../../workers/exec/send-files.ts";
import { failure } from "./harness.ts";

const ADDRESS = "127.3.9.1";
const stack: (() => PromiseLike<unknown>)[] = [];
afterEach(async () => {
  for (const undo of stack.splice(0).reverse()) await undo();
});

function startExecd() {
  const execd = createExecd();
  stack.push(() => execd[Symbol.asyncDispose]());
  return execd;
}

interface Daemon {
  commands: string[];
  server: Server;
}

/** Takes one request a connection; a second one finds the guest rebooted: a reset. */
async function startDaemon(onConnection: (socket: Socket) => void = () => {}): Promise<Daemon> {
  const commands: string[] = [];
  const used = new WeakSet<Socket>();
  const server = createServer(async (request, response) => {
    if (used.has(request.socket)) {
      request.socket.resetAndDestroy();
      return;
    }
    used.add(request.socket);
    let body = "";
    for await (const chunk of request) body += String(chunk);
    commands.push(JSON.parse(body).command);
    const allowed = request.headers.authorization === "Bearer token";
    response.writeHead(allowed ? 200 : 401).end(allowed ? '{"type":"exit","code":0}\n' : "");
  });
  server.on("connection", onConnection);
  await listen(server);
  return { commands, server };
}

/** In the daemon's place, until the test is over. */
async function listen(server: Server): Promise<void> {
  server.listen(EXECD_PORT, ADDRESS);
  await once(server, "listening");
  stack.push(async () => {
    server.closeAllConnections();
    server.close();
    await once(server, "close");
  });
}

const call = (more: Partial<ExecCall> = {}): ExecCall => ({
  address: ADDRESS,
  token: "token",
  script: "echo once",
  timeoutMs: 1_000,
  keepBytes: 1_000,
  signal: AbortSignal.timeout(10_000),
  ...more,
});

test("a command never goes out on a connection that was used before, by a probe or a command", async () => {
  const { commands } = await startDaemon();
  const execd = startExecd();
  const { address, token, signal } = call();
  expect(await execd.probe({ address, token, signal })).toBe("ready");
  for (const script of ["one", "two", "three"]) {
    expect(await execd.exec(call({ script }))).toMatchObject({ exitCode: 0 });
  }
  expect(commands.slice(-3)).toEqual(["one", "two", "three"]);
});

test("the guard is asked when the connection stands; when it refuses, nothing is sent", async () => {
  const order: string[] = [];
  const connected = Promise.withResolvers<void>();
  const { commands } = await startDaemon(() => {
    order.push("connected");
    connected.resolve();
  });
  const fenced = new FleetError("lock_lost", "another run took the job");
  const refused = startExecd().exec(
    call({
      guard: () => {
        order.push("guard");
        throw fenced;
      },
    }),
  );
  expect(await failure(refused, "lock_lost")).toBe(fenced);
  await connected.promise;
  expect(order.toSorted()).toEqual(["connected", "guard"]);
  expect(commands).toEqual([]);
});

test("a run that loses its lock while it connects does not send", async () => {
  const { commands } = await startDaemon();
  let mayAct = true;
  const guard = () => {
    if (!mayAct) throw new FleetError("lock_lost", "another run took the job");
  };
  const sending = startExecd().exec(call({ guard }));
  mayAct = false; // the connect needs turns of the event loop
  await failure(sending, "lock_lost");
  expect(commands).toEqual([]);
});

test("nobody there: certainly not run; a reset in the middle: perhaps", async () => {
  const execd = startExecd();
  await failure(execd.exec(call()), "execd_unreachable");
  const server = createServer((request) => request.socket.resetAndDestroy());
  server.listen(EXECD_PORT, ADDRESS);
  await once(server, "listening");
  stack.push(async () => {
    server.close();
    await once(server, "close");
  });
  await failure(execd.exec(call()), "exec_interrupted");
});

test("lines are handed on as they come, in order, one awaited before the next", async () => {
  const server = createServer((_, response) => {
    response.write('{"type":"stdout","data":"one"}\n{"type":"stderr","data":"two"}\n{"type":"stdout","data":"th');
    response.end('ree"}\n{"type":"exit","code":0}');
  });
  server.listen(EXECD_PORT, ADDRESS);
  await once(server, "listening");
  stack.push(async () => {
    server.close();
    await once(server, "close");
  });
  const seen: string[] = [];
  const onOutput = async (stream: string, line: string) => {
    seen.push(`${stream} begins`);
    await nextTurn();
    seen.push(line);
  };
  expect(await startExecd().exec(call({ keepBytes: 4, onOutput }))).toMatchObject({ stdout: "one\n", truncated: true });
  expect(seen).toEqual(["stdout begins", "one\n", "stderr begins", "two\n", "stdout begins", "three\n"]);
});

test("a reply that ends without an exit, in a line or between two: perhaps it ran to its end", async () => {
  for (const reply of ['{"type":"stdout","data":"one"}\n', '{"type":"stdout","da', ""]) {
    const server = createServer((_, response) => response.end(reply));
    server.listen(EXECD_PORT, ADDRESS);
    await once(server, "listening");
    await failure(startExecd().exec(call()), "exec_interrupted");
    server.close();
    await once(server, "close");
  }
});

describe("an answer that is not the daemon's 200", () => {
  const answer = (status: number, body = "") =>
    listen(
      createServer((request, response) => request.resume().once("end", () => response.writeHead(status).end(body))),
    );

  test.each([
    [401, "execd_unauthorized"],
    [403, "execd_unauthorized"],
    [400, "invalid_input"],
    [413, "invalid_input"],
    // No cmux-execd: certainly not run, and there may be another way.
    [404, "execd_unreachable"],
    [405, "execd_unreachable"],
    [429, "execd_unreachable"],
    // Nobody's fault who called, and perhaps it ran.
    [500, "exec_interrupted"],
    [503, "exec_interrupted"],
    [204, "exec_interrupted"],
    [302, "exec_interrupted"],
  ] as const)("%i to a command: %s", async (status, code) => {
    await answer(status, status === 204 ? "" : "<html>");
    expect((await failure(startExecd().exec(call()), code)).facts).toMatchObject({ status });
  });

  const send = () => {
    const { address, token, signal } = call();
    return sendFiles({ address, token, tar: Readable.from([Buffer.alloc(1_024)]), length: 1_024, signal });
  };
  test.each([
    [404, "404 page not found"],
    [405, "Method Not Allowed"],
    [500, 'Failed to start tar: exec: "tar": executable file not found in $PATH'],
    [500, "tar extraction failed: tar: x: Cannot mkdir: Read-only file system"],
    [503, ""],
  ])("%i to files (%s): they are brought by commands", async (status, text) => {
    await answer(status, text);
    expect(await send()).toBe(false);
  });
  test("a refused token and a full disk are told as such", async () => {
    await answer(403);
    await failure(send(), "execd_unauthorized");
    for (const undo of stack.splice(0).reverse()) await undo();
    await answer(500, "tar extraction failed: tar: x: Wrote only 2048 of 10240 bytes: No space left on device");
    await failure(send(), "disk_full");
  });
});

test("what a daemon says of files that it was sent is read as far as it may matter", async () => {
  let said = 0;
  const server = createServer((request, response) => {
    request.resume();
    const piece = Buffer.alloc(65_536);
    const say = () => {
      while (said < 64 * 1_048_576 && !response.destroyed) {
        said += piece.length;
        if (!response.write(piece)) return response.once("drain", say);
      }
      return response.end();
    };
    say();
  });
  server.listen(EXECD_PORT, ADDRESS);
  await once(server, "listening");
  stack.push(async () => {
    server.closeAllConnections();
    server.close();
    await once(server, "close");
  });
  const { address, token, signal } = call();
  const tar = Readable.from([Buffer.alloc(1_024)]);
  await failure(sendFiles({ address, token, tar, length: 1_024, signal }), "transfer_interrupted");
  expect(said).toBeLessThan(64 * 1_048_576);
});

test("a command that is given up is left at once, also while it connects", async () => {
  const reached = Promise.withResolvers<Socket>();
  await listen(createServer((request) => reached.resolve(request.socket)));
  const stop = new AbortController();
  const running = startExecd().exec(call({ signal: stop.signal }));
  const connection = await reached.promise;
  stop.abort(new FleetError("canceled", "not needed any more"));
  await failure(running, "canceled");
  await once(connection, "close"); // which ends the command in its container
  const soon = new AbortController();
  const connecting = startExecd().exec(call({ signal: soon.signal }));
  soon.abort(new FleetError("canceled", "not needed any more"));
  await failure(connecting, "canceled");
});

describe("a connection made ahead for a guest's next command", () => {
  /** Each connection in the order in which it was made, and which of them carried a request. */
  async function startGuest(answer: (at: number, socket: Socket) => boolean = () => true) {
    const sockets: Socket[] = [];
    const carried: number[] = [];
    const server = createServer((request, response) => {
      const at = sockets.indexOf(request.socket);
      carried.push(at);
      if (answer(at, request.socket)) response.end('{"type":"exit","code":0}\n');
    });
    server.on("connection", (socket) => sockets.push(socket));
    server.listen(EXECD_PORT, ADDRESS);
    await once(server, "listening");
    stack.push(async () => {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    });
    const execd = startExecd();
    const run = (guest: string, more: Partial<ExecCall> = {}) => execd.exec(call({ guest, ...more }));
    /** A command, and then the connection that it leaves. */
    const leaveSpare = async (guest: string) => {
      await run(guest);
      if (sockets.length < 2) await once(server, "connection");
      await nextTurn(); // the other end hears of it, too
      const spare = sockets[1];
      if (!spare) throw new Error("no connection was made ahead");
      return spare;
    };
    return { execd, run, leaveSpare, carried };
  }

  test("carries that one, and no other", async () => {
    const { run, leaveSpare, carried } = await startGuest();
    await leaveSpare("one");
    await run("one");
    expect(carried).toEqual([0, 1]);
    await run("one");
    expect(new Set(carried).size).toBe(3);
  });

  test("is of that guest, and of nobody who has its address later", async () => {
    const { run, leaveSpare, carried } = await startGuest();
    await leaveSpare("one");
    await run("another");
    expect(carried).toEqual([0, 2]);
  });

  test("closed before it was needed: another one is made", async () => {
    const { run, leaveSpare, carried } = await startGuest();
    const spare = await leaveSpare("one");
    spare.end();
    await once(spare, "close");
    await run("one");
    expect(carried).toEqual([0, 2]);
  });

  test("broken once it has carried the command: perhaps it ran, and it is not sent again", async () => {
    const { run, leaveSpare, carried } = await startGuest((at, socket) => at === 0 || !socket.resetAndDestroy());
    await leaveSpare("one");
    await failure(run("one"), "exec_interrupted");
    expect(carried).toEqual([0, 1]);
  });

  test("a run that may not send leaves it unused", async () => {
    const { run, leaveSpare, carried } = await startGuest();
    const spare = await leaveSpare("one");
    const refused = Promise.reject(new FleetError("lock_lost", "another run took the job"));
    await failure(run("one", { ready: refused }), "lock_lost");
    await once(spare, "close");
    expect(carried).toEqual([0]);
  });

  test("is closed where no command comes", async () => {
    const { leaveSpare } = await startGuest();
    await once(await leaveSpare("one"), "close");
  });
});
