/** One Redis server for the whole run of the integration tests: `inject("redisUrl")`. Each test takes a random prefix. */
import type { TestProject } from "vitest/node";
import { startRedis } from "./redis.ts";

declare module "vitest" {
  interface ProvidedContext {
    redisUrl: string;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const redis = await startRedis();
  project.provide("redisUrl", redis.url);
  return async () => redis[Symbol.asyncDispose]();
}
