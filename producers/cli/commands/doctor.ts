/** Hands over to the workers' doctor, where their source is: it needs their settings, which a producer never has. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import { EXIT } from "../exit-codes.ts";
import type { Cli, GlobalOptions } from "../session.ts";

const WORKERS = new URL("../../../workers/", import.meta.url);

export function addDoctor(program: Command, cli: Cli): void {
  const command = program
    .command("doctor")
    .summary("check what workers depend on; needs their settings")
    .description("Check settings, Redis, Proxmox VE, the token's rights, templates and SSH, and say what to do.")
    .option("--probe [template]", "make a sandbox, run a command in it and destroy it")
    .action(async ({ probe }: { probe?: string | true }) => {
      const { json = false } = command.optsWithGlobals<GlobalOptions>();
      try {
        const script = fileURLToPath(new URL(`doctor${extname(import.meta.url)}`, WORKERS));
        if (!existsSync(script))
          throw new FleetError(
            "not_configured",
            "the doctor is where workers are: npm run doctor in their source, or docker compose run --rm worker node workers/doctor.ts",
          );
        const words = [...(json ? ["--json"] : []), ...(probe ? ["--probe", ...(probe === true ? [] : [probe])] : [])];
        const [code] = await once(spawn(process.execPath, [script, ...words], { stdio: "inherit" }), "close");
        cli.code = typeof code === "number" ? code : EXIT.failed;
      } catch (error) {
        cli.fail(error, { json });
      }
    });
}
