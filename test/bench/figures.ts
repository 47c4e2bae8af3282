/** Numbers in, numbers out: pure. */
import { FleetError } from "../../producers/index.ts";

export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) * share;
  const low = sorted[Math.floor(at)] ?? Number.NaN;
  const high = sorted[Math.ceil(at)] ?? Number.NaN;
  return low + (high - low) * (at - Math.floor(at));
}

export const round = (value: number, digits: number) => Number(value.toFixed(digits));

export const spread = (values: readonly number[], digits = 0) =>
  `${round(Math.min(...values), digits)} to ${round(Math.max(...values), digits)}`;

/** The value of an option. Throws `invalid_input`. */
export function wholeNumber(name: string, text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1) return value;
  throw new FleetError("invalid_input", `${name} must be a whole number from 1 on`, { facts: { fields: [name] } });
}
