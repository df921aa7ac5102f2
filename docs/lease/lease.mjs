// Reads through a cache that walsweep keeps right, with the in-key lease.
//
// Needs ioredis 5 or newer, and `walsweep setup --lease` once. See docs/lease.md.
//
//   const cache = new Lease(new Redis(), { ttl: 300_000 });
//   const page = await cache.getOrCompute(`user:${id}`, async () => render(await selectUser(id)));

import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

export class Lease {
  // Times in milliseconds. `lease` is longer than `compute` takes, or its value is not stored.
  // Without a `ttl` a value stays until it is removed. Who waits for another reader longer than
  // `patience` computes, too. `onError` is told what Redis refused.
  constructor(client, { lease = 10_000, ttl, patience = 2_000, onError = console.warn } = {}) {
    Object.assign(this, { client, lease, ttl, patience, onError });
  }

  // The cached value, else what `compute` gives: a string, or null to store nothing.
  //
  // `compute` must read the database itself, on the primary, in a snapshot taken after the call.
  // What it throws goes to the caller; what Redis throws goes to `onError`, and costs a
  // computation.
  async getOrCompute(key, compute) {
    const [state, value] = await this.#ask(key);
    if (state === "HIT") return value;
    let computed = null;
    try {
      computed = (await compute()) ?? null;
    } finally {
      await this.#end(key, value, computed);
    }
    return computed;
  }

  // HIT and the value, MISS and the lease, or NONE: compute without a lease.
  async #ask(key) {
    const deadline = performance.now() + this.patience;
    for (let pause = 5; ; pause = Math.min(2 * pause, 100)) {
      const token = randomBytes(16).toString("hex");
      try {
        const reply = await this.client.fcall("walsweep_lease_get", 1, key, token, this.lease);
        if (reply[0] !== "BUSY") return reply;
      } catch (error) {
        this.onError(`read ${key} from the cache`, error);
        return ["NONE"];
      }
      if (performance.now() + pause > deadline) return ["NONE"];
      // Not all at once: each waits half to all of a pause that doubles up to 100 ms.
      await sleep(pause * (0.5 + Math.random() / 2));
    }
  }

  // Stores the value if the lease stands; without a value gives the lease back.
  async #end(key, lease, value) {
    if (lease === undefined) return;
    try {
      if (value === null) {
        await this.client.fcall("walsweep_lease_release", 1, key, lease);
      } else {
        // 0 is no error: the key was removed meanwhile, and the next reader computes.
        const ttl = this.ttl === undefined ? [] : [this.ttl];
        await this.client.fcall("walsweep_lease_set", 1, key, lease, value, ...ttl);
      }
    } catch (error) {
      this.onError(`write ${key} to the cache`, error);
    }
  }
}
