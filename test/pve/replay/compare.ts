/** Figures that differ from run to run; they must be numbers on both sides. */
const FIGURES = new Set(
  "pid pstart starttime endtime snaptime ctime uptime cpu mem maxmem disk maxdisk netin netout diskread diskwrite swap maxswap maxcpu cpus cgroup-mode size used total nodeid n".split(
    " ",
  ),
);
/** Texts that differ from run to run; they must be there on both sides. */
const NAMES = new Set("digest ssl_fingerprint hwaddr hardware-address ip repoid content tokenid".split(" "));

function mask(text: string): string {
  return text
    .replace(/UPID:(\w+):[0-9A-F]+:[0-9A-F]+:[0-9A-F]+:(\w*):(\w*):[^:]*:/g, "UPID:$1:$2:$3:")
    .replace(/\b([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b/g, "MAC")
    .replace(/\b[0-9a-f]{40}\b|<uuid>\w*/g, "HEX")
    .replace(/fe80::[0-9a-f:]+/g, "LINK")
    .replace(/\b(root@pam!)\w+/g, "$1TOKEN");
}

function idOf(value: unknown): string | undefined {
  if (typeof value !== "object" || value === null) return undefined;
  const fields = value as Record<string, unknown>;
  for (const key of ["upid", "volid", "id", "vmid", "key", "name", "storage"]) {
    const found = fields[key];
    if (typeof found === "string" || typeof found === "number") return mask(String(found));
  }
  return undefined;
}

/** What is different, as "path: expected, got"; nothing when the answers have one shape and one text. */
export function differences(expected: unknown, actual: unknown, path = ""): string[] {
  const name = path.slice(path.lastIndexOf(".") + 1);
  if (FIGURES.has(name) && typeof expected === "number") {
    return typeof actual === "number" ? [] : [`${path}: a number, got ${JSON.stringify(actual)}`];
  }
  if (NAMES.has(name) && typeof expected === "string") {
    return typeof actual === "string" && actual !== "" ? [] : [`${path}: a text, got ${JSON.stringify(actual)}`];
  }
  if (Array.isArray(expected)) return inLists(expected, actual, path);
  if (typeof expected === "object" && expected !== null) return inObjects(expected, actual, path);
  const want = typeof expected === "string" ? mask(expected) : expected;
  const got = typeof actual === "string" ? mask(actual) : actual;
  // A pending list names its values "value", whatever they are.
  if (name === "value" && want === "HEX" && typeof got === "string") return [];
  return want === got ? [] : [`${path}: ${JSON.stringify(want)}, got ${JSON.stringify(got)}`];
}

function inLists(expected: unknown[], actual: unknown, path: string): string[] {
  if (!Array.isArray(actual)) return [`${path}: a list, got ${JSON.stringify(actual)}`];
  if (expected.length !== actual.length) return [`${path}: ${expected.length} entries, got ${actual.length}`];
  return expected.flatMap((item, index) => {
    const id = idOf(item);
    const other = id === undefined ? undefined : actual.find((candidate) => idOf(candidate) === id);
    return differences(item, other ?? actual[index], `${path}[${id ?? index}]`);
  });
}

function inObjects(expected: object, actual: unknown, path: string): string[] {
  if (typeof actual !== "object" || actual === null || Array.isArray(actual)) {
    return [`${path}: an object, got ${JSON.stringify(actual)}`];
  }
  const want = new Map(Object.entries(expected));
  const got = new Map(Object.entries(actual));
  const found = [...want].flatMap(([key, value]) =>
    got.has(key) ? differences(value, got.get(key), `${path}.${key}`) : [`${path}.${key}: missing`],
  );
  for (const key of got.keys()) if (!want.has(key)) found.push(`${path}.${key}: not in the recording`);
  return found;
}

export function sameLine(expected: string, actual: string): boolean {
  return mask(expected) === mask(actual);
}
