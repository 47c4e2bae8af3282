import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { type ExecEvent, runCommand, type Shell, type Sink } from "./command.ts";

const EXECD_PORT = 39375;
const MAX_BODY = 1024 * 1024;

export interface ExecdSetup {
  address: string;
  /** Undefined: open to all. */
  token: string | undefined;
  shell: Shell;
  workspace: string;
  /** Whether it has `/files`. */
  files: boolean;
  /** Resolves at once unless the guest is frozen. */
  thawed: () => Promise<void>;
  onCommand: () => void;
}

/** Opens execd; rejects with the listen error (EADDRINUSE, EADDRNOTAVAIL). */
export async function startExecd(setup: ExecdSetup): Promise<Server> {
  const server = createServer((request, response) => {
    void setup
      .thawed()
      .then(() => route(setup, request, response))
      .catch((error: unknown) => response.destroy(error instanceof Error ? error : undefined));
  });
  server.listen(EXECD_PORT, setup.address);
  await once(server, "listening");
  return server;
}

async function route(setup: ExecdSetup, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const path = (request.url ?? "").split("?")[0];
  if (path === "/healthz") {
    response.end("ok");
    return;
  }
  if (path !== "/exec" && !(path === "/files" && setup.files)) return plain(response, 404, "404 page not found");
  if (setup.token !== undefined && request.headers.authorization !== `Bearer ${setup.token}`) {
    response.writeHead(401, { "Content-Type": "application/json" }).end('{"error":"Unauthorized"}');
    return;
  }
  if (request.method !== "POST") return plain(response, 405, "Method Not Allowed");
  if (path === "/files") return unpack(setup, request, response);
  await exec(setup, request, response);
}

function plain(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, { "Content-Type": "text/plain; charset=utf-8" }).end(`${text}\n`);
}

async function exec(setup: ExecdSetup, request: IncomingMessage, response: ServerResponse): Promise<void> {
  if (!(request.headers["content-type"] ?? "").toLowerCase().includes("application/json")) {
    return plain(response, 415, "Unsupported Content-Type");
  }
  const asked = parseExec(await readBody(request));
  if ("error" in asked) return plain(response, 400, asked.error);
  setup.onCommand();
  const gone = new AbortController();
  response.once("close", () => gone.abort());
  // As Go's server has it, the head goes out with the first line: a silent command says nothing at all until it ends.
  response.writeHead(200, { "Content-Type": "application/jsonlines", "Cache-Control": "no-store" });
  await runCommand(inWorkspace(asked.command, setup.workspace), setup.shell, {
    timeoutMs: asked.timeoutMs,
    sink: toSink(response),
    signal: gone.signal,
  });
  response.end();
}

/** Guests have this machine's file system, so `/workspace` in a command is made the guest's own, as `/files` has it. */
function inWorkspace(command: string, workspace: string): string {
  return command.replace(/(?<![\w./~})-])\/workspace(?![\w.-])/g, workspace);
}

export function toSink(response: ServerResponse): Sink {
  return {
    write: (event: ExecEvent) => response.destroyed || response.write(`${JSON.stringify(event)}\n`),
    drained: () =>
      new Promise((resolve) => {
        const done = () => {
          response.off("drain", done).off("close", done);
          resolve();
        };
        response.on("drain", done).on("close", done);
      }),
  };
}

/** At most 1 MiB; the rest is cut off, and no longer parses. */
async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    if (size < MAX_BODY) chunks.push(chunk.subarray(0, MAX_BODY - size));
    size += chunk.length;
  }
  return Buffer.concat(chunks).toString("utf8");
}

function parseExec(body: string): { command: string; timeoutMs: number } | { error: string } {
  let parsed: unknown;
  try {
    parsed = JSON.parse(body);
  } catch (error) {
    return { error: `Invalid JSON body: ${error instanceof Error ? error.message : "?"}` };
  }
  const fields: { command?: unknown; timeout_ms?: unknown } =
    typeof parsed === "object" && parsed !== null ? parsed : {};
  const { command = "", timeout_ms = 0 } = fields;
  if (typeof command !== "string") return { error: "Invalid JSON body: command is not a string" };
  if (command.trim() === "") return { error: "Command is required" };
  const timeoutMs = timeout_ms ?? 0;
  if (typeof timeoutMs !== "number" || !Number.isInteger(timeoutMs)) {
    return { error: "Invalid JSON body: timeout_ms is not an integer" };
  }
  if (timeoutMs < 0) return { error: "timeout_ms must be non-negative" };
  return { command: command.trim(), timeoutMs };
}

async function unpack(setup: ExecdSetup, request: IncomingMessage, response: ServerResponse): Promise<void> {
  setup.onCommand();
  try {
    await mkdir(setup.workspace, { recursive: true });
  } catch (error) {
    return plain(response, 500, `Failed to create workspace: ${error instanceof Error ? error.message : "?"}`);
  }
  const tar = spawn("tar", ["-x", "-C", setup.workspace], {
    env: setup.shell.env,
    stdio: ["pipe", "ignore", "pipe"],
  });
  let complaint = "";
  tar.stderr.on("data", (chunk: Buffer) => {
    complaint += chunk.toString("utf8");
  });
  // tar may end before it has read everything.
  tar.stdin.on("error", () => request.resume());
  // A caller who leaves is the end of the tar to it: what has come is unpacked.
  response.once("close", () => tar.stdin.end());
  request.pipe(tar.stdin);
  const [code] = (await once(tar, "close")) as [number | null];
  if (code === 0) response.end("ok");
  else plain(response, 500, `tar extraction failed: ${complaint.trim() || `exit status ${code}`}`);
}
