/** A template's specification in YAML, with the files that it names, as a build's input. */
import { readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { type Document, isNode, LineCounter, parseDocument } from "yaml";
import { z } from "zod";
import { FleetError } from "../../shared/errors.ts";
import { BUILD_FILES_LIMIT, BuildFile, BuildInput } from "../../shared/jobs/build.ts";
import { sayIssue } from "../../shared/jobs/problems.ts";

const { path, mode, owner } = BuildFile.shape;
const SpecFile = z
  .strictObject({
    path,
    /** Relative to the specification. */
    source: z.string().min(1).optional(),
    /** Its text, in place of a source. */
    content: z.string().optional(),
    mode,
    owner,
  })
  .refine((file) => (file.source === undefined) !== (file.content === undefined), {
    error: "needs either source, a file beside the specification, or content",
  });
const Spec = BuildInput.extend({ files: z.array(SpecFile).max(256).optional() }).omit({ team: true });

/** Throws `invalid_input` that names file, line and field of each problem, never what stands there. */
export async function loadBuildSpec(file: string): Promise<BuildInput> {
  const text = await readFile(file, "utf8").catch((cause: unknown) => {
    throw invalid(`${file}: must be a file that can be read`, ["file"], cause);
  });
  const { spec, line } = parseSpec(file, text);
  const files: z.input<typeof BuildFile>[] = [];
  for (const [index, { source, content = "", ...place }] of (spec.files ?? []).entries()) {
    const bytes = source === undefined ? Buffer.from(content) : await readSource(file, { source, index, line });
    files.push({ ...place, content: bytes.toString("base64") });
  }
  const size = files.reduce((sum, one) => sum + one.content.length, 0);
  if (size > BUILD_FILES_LIMIT)
    throw invalid(`${file}: files: too large together; let a command fetch them`, ["files"]);
  return { ...spec, files };
}

interface Parsed {
  spec: z.output<typeof Spec>;
  line(at: readonly string[]): number;
}

async function readSource(
  spec: string,
  { source, index, line }: Pick<Parsed, "line"> & { source: string; index: number },
): Promise<Buffer> {
  return readFile(resolve(dirname(spec), source)).catch((cause: unknown) => {
    const at = ["files", String(index), "source"];
    const field = at.join(".");
    throw invalid(`${spec}:${line(at)}: ${field}: ${source} can't be read`, [field], cause);
  });
}

function parseSpec(file: string, text: string): Parsed {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const [broken] = document.errors;
  if (broken) throw invalid(`${file}:${lines.linePos(broken.pos[0]).line}: is no YAML: ${broken.code}`, ["file"]);
  const parsed = Spec.safeParse(document.toJS(), { error: sayIssue });
  const line = (at: readonly string[]) => lineOf(document, lines, at);
  if (parsed.success) return { spec: parsed.data, line };
  const problems = parsed.error.issues.flatMap((issue) => {
    const at = issue.path.map(String);
    if (issue.code !== "unrecognized_keys") return [{ at, text: issue.message }];
    return issue.keys.map((key) => ({ at: [...at, key], text: "a build has no such field" }));
  });
  const texts = problems.map((one) => `${file}:${line(one.at)}: ${one.at.join(".") || "it"}: ${one.text}`);
  throw invalid(
    texts.join("; "),
    problems.map((one) => one.at.join(".")),
  );
}

/** Of the field, or of the nearest one around it that is there. */
function lineOf(document: Document, lines: LineCounter, at: readonly string[]): number {
  for (let depth = at.length; depth > 0; depth--) {
    const keys = at.slice(0, depth).map((key) => (/^\d+$/.test(key) ? Number(key) : key));
    const node = document.getIn(keys, true);
    if (isNode(node) && node.range) return lines.linePos(node.range[0]).line;
  }
  return 1;
}

const invalid = (text: string, fields: readonly string[], cause?: unknown): FleetError =>
  new FleetError("invalid_input", text, { cause, facts: { fields } });
