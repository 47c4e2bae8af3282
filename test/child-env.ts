/** What every process of ours that a test starts gets: its code compiled once, not by each of hundreds. */
import { fileURLToPath } from "node:url";

export const CHILD_ENV = {
  PATH: process.env["PATH"] ?? "",
  NODE_COMPILE_CACHE: fileURLToPath(new URL("../node_modules/.cache/compile", import.meta.url)),
};
