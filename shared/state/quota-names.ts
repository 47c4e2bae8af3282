/** What a team may have of what, and what counts for which. */

/**
 * `sandboxes`: those that live, in whatever state, and those in the making. `provisions`, `execs`: accepted and not
 * ended. `rate`: operations accepted within a minute, save those that give something back.
 */
export const QUOTA_NAMES = ["sandboxes", "provisions", "execs", "rate"] as const;
export type QuotaName = (typeof QUOTA_NAMES)[number];

/** Operations that need room in the same quotas; those of a team that wait for it stand in one line a class. */
export const QUOTA_CLASSES = ["provisions", "execs", "others"] as const;
export type QuotaClass = (typeof QUOTA_CLASSES)[number];

export const QUOTA_NEEDS = {
  provisions: ["sandboxes", "provisions", "rate"],
  execs: ["execs", "rate"],
  others: ["rate"],
} as const satisfies Record<QuotaClass, readonly QuotaName[]>;
