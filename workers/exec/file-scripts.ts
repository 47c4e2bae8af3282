/**
 * Shell text that puts files in place and reads them, run in the sandbox as root. A path is one quoted word. What the
 * sandbox's own processes do meanwhile (links, renames) can lead it astray inside that sandbox only.
 */
import { TRANSFER_LIMIT } from "../../shared/jobs/fields.ts";
import type { ParsedInput } from "../../shared/jobs/index.ts";
import { quoteWord } from "../../shared/shell-quote.ts";
import { WORKSPACE } from "./send-files.ts";

/** Where content is staged that does not come through execd's `/files`: on disk, which /tmp need not be. */
export const SPOOL = "/var/tmp";
/** Name of the content in its stage. */
export const STAGED = "content";
/** What a reading script says besides content, which is base64. */
export const SAYS = { mode: "#mode ", size: "#size ", end: "#end", complaint: "#complaint " } as const;
/** Exit codes of our own; tools end with others. */
export const EXITS = {
  notFound: 41,
  folder: 42,
  noFolder: 43,
  special: 44,
  altered: 45,
  noTar: 46,
  tooLarge: 47,
} as const;

/** Name of one attempt's folder. */
export const stageOf = (operation: string, attempt: string): string => `.fleet-${operation}.${attempt}`;

const HEAD = "export LC_ALL=C; set -o pipefail; shopt -s dotglob nullglob; umask 022";

/** Appends its input to the staged content. */
export const toPieceScript = (stage: string): string =>
  `${HEAD}\nmkdir -p -m 700 -- ${quoteWord(stage)} && cat >>${quoteWord(`${stage}/${STAGED}`)}`;

/**
 * Puts the staged content in place by renaming: whoever reads sees the old or the new, never a part. However it ends,
 * nothing of this operation's stages is left, and nothing of others' that are older than a day.
 */
export function toInstallScript(
  operation: string,
  { stage, sha256, input }: { stage: string; sha256: string; input: ParsedInput<"upload"> },
): string {
  const { path, format, mode, owner } = input;
  return [
    HEAD,
    `path=${quoteWord(path)} content=${quoteWord(`${stage}/${STAGED}`)} name=${quoteWord(`${stage.slice(stage.lastIndexOf("/") + 1)}.new`)}`,
    `mode=${mode === undefined ? "" : mode.toString(8)} owner=${quoteWord(owner ?? "")} beside=${quoteWord(WORKSPACE)}`,
    `clean() { ${toRemoval(operation, ['"$beside"'])}; ${REMOVE_OUTDATED}; } 2>/dev/null`,
    "trap clean EXIT",
    `[ "$(sha256sum <"$content")" = "${sha256}  -" ] || exit ${EXITS.altered}`,
    RESOLVE,
    format === "file" ? INSTALL_FILE : INSTALL_TAR,
  ].join("\n");
}

/** A link is followed, as by any program that writes to it. */
const RESOLVE = `if [ -L "$path" ]; then path=$(readlink -f -- "$path") || exit 1; fi
while [ "$path" != "\${path%/}" ]; do path=\${path%/}; done`;

const REMOVE_OUTDATED = `find ${WORKSPACE} ${SPOOL} -maxdepth 1 -name ".fleet-op_*" -mmin +1440 -exec rm -rf -- {} +`;

/** Whose it is and what it may: as asked, else as it was. (A test's sandbox need not run as root.) */
const INSTALL_FILE = `[ -d "$path/" ] && exit ${EXITS.folder}
[ -e "$path" ] && [ ! -f "$path" ] && exit ${EXITS.special}
mkdir -p -- "\${path%/*}/" || exit 1
beside=\${path%/*} new=$beside/$name was="0:0 644"
mv -T -- "$content" "$new" || exit 1
if [ -e "$path" ]; then was=$(stat -c "%u:%g %a" -- "$path") || exit 1; fi
chown -- "\${owner:-\${was% *}}" "$new" || [ -z "$owner" ] || exit 1
chmod -- "\${mode:-\${was#* }}" "$new" && mv -fT -- "$new" "$path"`;

/** A folder that is there keeps what it has, its own rights included; each file takes the place of its namesake. */
const INSTALL_TAR = `if [ -d "$path/" ]; then beside=$path
else
  [ -e "$path" ] && exit ${EXITS.noFolder}
  mkdir -p -- "\${path%/*}/" || exit 1
  beside=\${path%/*}
fi
command -v tar >/dev/null || { echo "tar: command not found" >&2; exit 1; }
tar -t -f "$content" >/dev/null 2>&1 || exit ${EXITS.noTar}
new=$beside/$name
mkdir -- "$new" && tar -x -p --no-same-owner -f "$content" -C "$new" || exit 1
[ -z "$owner" ] || chown -Rh -- "$owner" "$new" || exit 1
merge() {
  local one to
  for one in "$1"/*; do
    to=$2/\${one##*/}
    if [ -d "$one" ] && [ ! -L "$one" ] && [ -e "$to" ]; then
      [ -d "$to" ] || return ${EXITS.noFolder}
      merge "$one" "$to" || return
    elif [ -d "$to" ] && [ ! -L "$to" ]; then return ${EXITS.folder}
    else printf "%s\\0" "$one"; fi
  done | xargs -0r mv -f -t "$2" --
}
if [ -d "$path/" ]; then merge "$new" "$path"; else mv -T -- "$new" "$path"; fi`;

/** Removes an operation's stages wherever its attempts may have left them; `folders`: shell text of more places. */
function toRemoval(operation: string, folders: readonly string[]): string {
  const stages = [WORKSPACE, SPOOL, ...folders].map((folder) => `${folder}/${stageOf(operation, "*")}`);
  return `rm -rf -- ${stages.join(" ")}`;
}

/** For an upload that was cut short anywhere. */
export function toUndoScript(operation: string, path: string): string {
  return [HEAD, `path=${quoteWord(path)}`, RESOLVE, toRemoval(operation, ['"$path"', `"\${path%/*}"`])].join("\n");
}

/** Of a line of base64: whole bytes each, and well below the 1 MiB that execd takes. */
const LINE = 131_072;

/** Kept of what tools complain of. */
const COMPLAINT_BYTES = 8_192;

/**
 * Prints `#mode`, the content in base64, and `#end`: only with that it is all there. What tools complain of, as tar does of each
 * socket that it leaves out, follows on the same stream: of two at once execd makes a reply that is no HTTP.
 */
export function toReadScript({ path, format }: ParsedInput<"download">): string {
  const encode = `base64 -w ${LINE}`;
  const read = [
    `[ -e "$path" ] || [ -L "$path" ] || exit ${EXITS.notFound}`,
    ...(format === "file"
      ? [
          `[ -d "$path" ] && exit ${EXITS.folder}`,
          `[ -f "$path" ] || exit ${EXITS.special}`,
          `size=$(stat -Lc %s -- "$path"); [ "$size" -le ${TRANSFER_LIMIT} ] || { echo "${SAYS.size}$size"; exit ${EXITS.tooLarge}; }`,
        ]
      : [`[ -d "$path" ] || exit ${EXITS.noFolder}`]),
    `echo "${SAYS.mode}$(stat -Lc %a -- "$path")"`,
    ...(format === "file"
      ? [`${encode} <"$path" || exit 1`]
      : [
          // 1: a file was changed while it was read, which in a folder that is worked in is no failure (tar, "Return codes").
          `{ tar -C "$path" --exclude="./.fleet-op_*" -c -f - . || [ $? = 1 ]; } | ${encode} || exit 1`,
        ]),
    `echo "${SAYS.end}"`,
  ];
  return [
    HEAD,
    `path=${quoteWord(path)}`,
    `exec 3>&1\nread_it() {\n${read.join("\n")}\n}`,
    `complaint=$(read_it 2>&1 >&3 3>&- | { head -c ${COMPLAINT_BYTES}; cat >/dev/null; } | base64 -w 0); code=$?`,
    `[ -z "$complaint" ] || echo "${SAYS.complaint}$complaint"\nexit $code`,
  ].join("\n");
}
