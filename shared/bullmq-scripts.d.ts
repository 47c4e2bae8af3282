/** BullMQ has the texts of its scripts in files without types. */
declare module "bullmq/dist/cjs/scripts/addStandardJob-9.js" {
  export const addStandardJob: { readonly content: string };
}
declare module "bullmq/dist/cjs/scripts/moveToActive-11.js" {
  export const moveToActive: { readonly content: string };
}
