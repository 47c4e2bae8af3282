import { z } from "zod";
import { until } from "../integration/fleet/until.ts";
import type { World } from "./world.ts";

/** Where the first worker's ops pages are. */
export async function opsUrl({ workerLog }: World): Promise<string> {
  const log = await until(async () => {
    const text = await workerLog(0);
    return text.includes("ops pages are up") ? text : null;
  }, "the ops pages");
  return z.string().parse(/"url":"(http:[^"]+)","msg":"ops pages are up"/.exec(log)?.[1]);
}
