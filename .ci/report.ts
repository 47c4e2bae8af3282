/**
 * A reporter for .ci/run: writes to the file that CI_REPORT names how many tests passed and failed, and each failure once
 * more in few lines, since a log that is cut shows its end. Written after each file, so that it is there after a time-out too.
 */
import { writeFileSync } from "node:fs";
import { stripVTControlCharacters } from "node:util";
import type { Reporter, SerializedError, TestCase, TestModule } from "vitest/node";

const MESSAGE_LINES = 20;
const DIFF_LINES = 40;
/** Characters of one. */
const LINE = 300;

export default class Report implements Reporter {
  readonly #running = new Set<string>();
  readonly #failures: string[] = [];
  #passed = 0;

  onTestModuleStart({ relativeModuleId }: TestModule): void {
    this.#running.add(relativeModuleId);
    this.#write();
  }

  onTestCaseResult(test: TestCase): void {
    const { state, errors } = test.result();
    if (state === "passed") this.#passed += 1;
    if (state === "failed") this.#fail(`${test.module.relativeModuleId} > ${test.fullName}`, errors);
  }

  /** A file that does not load, and hooks: their errors belong to no test. */
  onTestModuleEnd(module: TestModule): void {
    const { relativeModuleId } = module;
    this.#running.delete(relativeModuleId);
    for (const error of module.errors()) this.#fail(relativeModuleId, [error]);
    for (const suite of module.children.allSuites())
      for (const error of suite.errors()) this.#fail(`${relativeModuleId} > ${suite.fullName}`, [error]);
    this.#write();
  }

  onTestRunEnd(_: readonly TestModule[], unhandled: readonly SerializedError[]): void {
    for (const error of unhandled) this.#fail("outside of any test", [error]);
    this.#write();
  }

  #fail(where: string, errors: readonly SerializedError[]): void {
    this.#failures.push([where, ...errors.flatMap((error) => tell(error)).map((line) => `  ${line}`)].join("\n"));
  }

  #write(): void {
    const file = process.env["CI_REPORT"];
    if (file === undefined) throw new Error("CI_REPORT names no file");
    const unfinished = [...this.#running].map((name) => `${name} had not ended`);
    const lines = [`${this.#passed} ${this.#failures.length}`, ...this.#failures, ...unfinished];
    writeFileSync(file, `${lines.join("\n")}\n`);
  }
}

function tell({ name, message, diff, stacks, cause }: SerializedError): string[] {
  const place = stacks?.[0];
  return [
    ...limited(name ? `${name}: ${message}` : message, MESSAGE_LINES),
    ...(cause?.message ? limited(`because of ${cause.message}`, MESSAGE_LINES) : []),
    ...(diff ? limited(diff, DIFF_LINES) : []),
    ...(place ? [`at ${place.file}:${place.line}`] : []),
  ];
}

function limited(text: string, most: number): string[] {
  const lines = stripVTControlCharacters(text).split("\n");
  const shown = lines.slice(0, most).map((line) => (line.length <= LINE ? line : `${line.slice(0, LINE)}…`));
  return lines.length <= most ? shown : [...shown, `… ${lines.length - most} more lines`];
}
