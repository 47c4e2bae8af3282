/** What operators deploy by, judged by the programs that will read it. Without them the tests fail: `npm run setup -- --deploy`. */
import { execFile } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, onTestFinished, test } from "vitest";
import { addProcessMetrics, createMetrics } from "../../workers/metrics.ts";

const execute = promisify(execFile);
const ROOT = join(import.meta.dirname, "../..");
const RULES = join(ROOT, "deploy/prometheus/alerts.yml");
const TESTS = join(ROOT, "test/deploy/alerts.yml");
const UNITS = join(ROOT, "deploy/systemd");

test("the alert rules are rules, and each alert fires when it is to, and not before", async () => {
  await execute("promtool", ["check", "rules", RULES]);
  await execute("promtool", ["test", "rules", TESTS]);
  const [rules, tests] = [RULES, TESTS].map((path) => readFileSync(path, "utf8"));
  const alerts = [...(rules ?? "").matchAll(/- alert: (\w+)/g)].map(([, name]) => name);
  const fire = [...(tests ?? "").matchAll(/alertname: (\w+)\n\s+exp_alerts:\n/g)].map(([, name]) => name);
  expect(fire).toEqual(alerts);
});

test("metrics are named and told as Prometheus has it", async () => {
  const { registry, ...metrics } = createMetrics();
  addProcessMetrics(registry);
  metrics.pveAnswered({ method: "GET", endpoint: "/version", status: 200, ms: 5 });
  const checked = execute("promtool", ["check", "metrics"]);
  checked.child.stdin?.end(await registry.metrics());
  expect(await checked).toMatchObject({ stdout: "", stderr: "" });
});

test("a rule that is wrong is noticed", async () => {
  const folder = await mkdtemp(join(tmpdir(), "fleet-alerts-"));
  onTestFinished(() => rm(folder, { recursive: true }));
  const rules = join(folder, "alerts.yml");
  await writeFile(rules, readFileSync(RULES, "utf8").replace("> 30\n", "> 30000\n"));
  await writeFile(join(folder, "tests.yml"), readFileSync(TESTS, "utf8").replace(/\.\.\/\S+alerts\.yml/, rules));
  await expect(execute("promtool", ["test", "rules", join(folder, "tests.yml")])).rejects.toThrow(/FleetWorkersSilent/);
});

/** systemd's exposure, from 0 to 10; 2 and less is "OK". */
const MOST_EXPOSED = 2;

test.each(readdirSync(UNITS).filter((name) => name.endsWith(".service")))("%s is a unit, and shut in", async (name) => {
  const folder = await mkdtemp(join(tmpdir(), "fleet-units-"));
  onTestFinished(() => rm(folder, { recursive: true }));
  const unit = join(folder, name.replace("@.", "@3001."));
  // The programs as they lie here.
  await writeFile(unit, readFileSync(join(UNITS, name), "utf8").replaceAll("/opt/sandbox-fleet", ROOT));
  const { stderr } = await execute("systemd-analyze", ["verify", "--man=no", unit]);
  expect(stderr.split("\n").filter((line) => line.includes("fleet-"))).toEqual([]);
  const threshold = `--threshold=${MOST_EXPOSED * 10}`;
  await execute("systemd-analyze", ["security", "--offline=yes", threshold, unit]);
});
