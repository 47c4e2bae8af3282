/** Any text for property tests: each code point of Unicode but the halves of pairs, a third of them ASCII. */
import fc from "fast-check";

/** fast-check's own units of all of Unicode come with a table of them, which takes a second or more to build. */
const codePoint = fc.oneof(
  fc.integer({ min: 0, max: 0x7f }),
  fc.integer({ min: 0x80, max: 0xd7ff }),
  fc.integer({ min: 0xe000, max: 0x10ffff }),
);

/** At most that many code points. */
export const anyText = (most = 10): fc.Arbitrary<string> =>
  fc.array(codePoint, { maxLength: most }).map((points) => String.fromCodePoint(...points));
