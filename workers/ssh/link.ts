/** One SSH connection that is up. */
import { Socket } from "node:net";
import ssh2, { type Client, type ConnectConfig } from "ssh2";

/** A connection that nobody has used for so long is closed. */
const IDLE_MS = 60_000;
/** A node that is gone without a word is noticed within 20 s. */
const KEEPALIVE = { keepaliveInterval: 5_000, keepaliveCountMax: 3 };

export class Link {
  readonly client: Client;
  readonly #socket: Socket;
  #users = 0;
  #retired = false;
  #idle: NodeJS.Timeout | undefined;

  private constructor(client: Client, socket: Socket) {
    this.client = client;
    this.#socket = socket;
  }

  /** Resolves once the user is logged in; the signal's abort ends the attempt. `config` says whom to trust and as whom. */
  static async open(
    place: { host: string; port: number },
    config: Pick<ConnectConfig, "username" | "authHandler" | "algorithms" | "hostVerifier">,
    signal: AbortSignal,
  ): Promise<Link> {
    signal.throwIfAborted();
    const client = new ssh2.Client();
    // A socket of our own: ssh2 does not destroy one that it has half closed.
    const socket = new Socket();
    const link = new Link(client, socket);
    await new Promise<void>((resolve, reject) => {
      const onAbort = () => {
        reject(signal.reason);
        link.destroy();
      };
      signal.addEventListener("abort", onAbort, { once: true });
      client.on("ready", resolve);
      // It stays: an error without a listener would end the process, and each is followed by `close`.
      client.on("error", (error) => {
        reject(error);
        link.destroy();
      });
      client.on("close", () => {
        reject(new Error("the connection was closed"));
        link.destroy();
        signal.removeEventListener("abort", onAbort);
      });
      client.on("ready", () => signal.removeEventListener("abort", onAbort));
      socket.connect(place.port, place.host);
      socket.setNoDelay(true);
      client.connect({ ...config, ...KEEPALIVE, sock: socket, readyTimeout: 0 });
    });
    link.#rest();
    return link;
  }

  get usable(): boolean {
    return !this.#retired && !this.#socket.destroyed;
  }

  /** While it is held it stays open. */
  hold(): Disposable {
    this.#users += 1;
    clearTimeout(this.#idle);
    return {
      [Symbol.dispose]: () => {
        this.#users -= 1;
        if (this.#users === 0) this.#rest();
      },
    };
  }

  /** No new command on it; it ends with its last one. */
  retire(): void {
    this.#retired = true;
    if (this.#users === 0) this.destroy();
  }

  destroy(): void {
    this.#retired = true;
    clearTimeout(this.#idle);
    this.#socket.destroy();
  }

  #rest(): void {
    if (this.#retired) this.destroy();
    else this.#idle = setTimeout(() => this.destroy(), IDLE_MS);
  }
}
