/** Fields as Perl writes them: it decides at run time whether a number goes out as 5 or as "5", so both are taken. */
import { z } from "zod";
import { Vmid } from "../../shared/ids.ts";

/** Of calls whose answer is `null` or of no use. */
export const Nothing = z.unknown();

/** An object of which we name what we read; PVE adds fields with every release. Its nulls are left out. */
export const loose = <Shape extends z.ZodRawShape>(shape: Shape) => z.preprocess(withoutNulls, z.looseObject(shape));

function withoutNulls(value: unknown): unknown {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  if (!Object.values(value).includes(null)) return value; // nearly always, and there may be thousands
  return Object.fromEntries(Object.entries(value).filter(([, field]) => field !== null));
}

const scalar = z.union([z.number(), z.string()]);
export const num = scalar.pipe(z.coerce.number());
export const text = scalar.transform(String);
export const vmid = num.pipe(Vmid);

/** 1, "1", 0, "0", "". */
export const flag = z
  .union([z.boolean(), scalar])
  .transform((value) => value !== "" && value !== "0" && value !== 0 && value !== false);

/** A number in a config, where PVE keeps whatever a client once wrote (`memory: " "` was seen); garbage is undefined. */
export const configNum = scalar.transform((value) => {
  const parsed = typeof value === "string" && value.trim() !== "" ? Number(value) : value;
  return typeof parsed === "number" && Number.isFinite(parsed) ? parsed : undefined;
});
