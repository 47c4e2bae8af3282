/// <reference path="../bullmq-scripts.d.ts" />
/** A BullMQ job in Lua, for the script that accepts operations: the same that `Queue.add` makes, in the same step. */
import { addStandardJob } from "bullmq/dist/cjs/scripts/addStandardJob-9.js";
import { EVENTS_KEPT, JOB_OPTIONS } from "../queues.ts";

/** A value of JSON as one of Lua: decoding it with each job takes longer than making it. */
function toLua(value: unknown): string {
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([name, one]) => `${name}=${toLua(one)}`)
    .join(",")}}`;
}

/** BullMQ's own script, as a function of what it is handed; for jobs without a priority. */
export const JOB_LUA = `
local function addStandardJob(KEYS, ARGV)
${addStandardJob.content}
end
local function addJob(queue, id, kind, data, now, trace)
  local base, keys = P..':'..queue..':', {}
  for at, part in ipairs({'wait', 'paused', 'meta', 'id', 'completed', 'delayed', 'active', 'events', 'marker'}) do
    keys[at] = base..part
  end
  -- As a Queue of ours sets it; of one that nobody has opened yet BullMQ would keep ten times as many.
  redis.call('HSETNX', base..'meta', 'opts.maxLenEvents', ${EVENTS_KEPT})
  local options = ${toLua(JOB_OPTIONS)}
  options.jobId = id
  options.tm = trace -- telemetry.metadata, as BullMQ keeps it
  addStandardJob(keys, {cmsgpack.pack({base, id, kind, now}), cjson.encode(data), cmsgpack.pack(options)})
end
`;
