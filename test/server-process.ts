/** Servers of others that tests run: each a process of its own, until it is disposed of. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { delimiter } from "node:path";
import { until } from "./integration/fleet/until.ts";

export interface ServerProcess {
  command: string;
  args: readonly string[];
  env?: Record<string, string>;
  /** Looked at until it is true. */
  isUp: () => Promise<boolean>;
}

export async function startServerProcess({ command, args, env, isUp }: ServerProcess): Promise<AsyncDisposable> {
  // Debian has some of them in a folder that is on root's PATH only.
  const path = `${process.env["PATH"]}${delimiter}/usr/sbin`;
  const child = spawn(command, args, { env: { PATH: path, ...env }, stdio: "ignore" });
  const kill = () => void child.kill("SIGKILL");
  process.on("exit", kill);
  const gone = once(child, "exit").catch((cause: unknown) => {
    throw new Error(`${command} is missing; npm run setup installs it on Debian, else put it on PATH`, { cause });
  });
  const stop = async () => {
    process.off("exit", kill);
    kill();
    await gone.catch(() => {});
  };
  const early = gone.then(([code]) => Promise.reject(new Error(`${command} ended at once (${code})`)));
  early.catch(() => {}); // later it is its usual end
  try {
    await Promise.race([until(isUp, command), early]);
  } catch (error) {
    await stop();
    throw error;
  }
  return { [Symbol.asyncDispose]: stop };
}

/** Of 127.0.0.1, for a server that is told where to listen. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  return typeof address === "object" && address !== null ? address.port : 0;
}
