"""Reads through a cache that walsweep keeps right, with the in-key lease.

Needs redis-py 4.2 or newer, and `walsweep setup --lease` once. See docs/lease.md.

    cache = Lease(redis.Redis(), ttl=300)
    page = cache.get_or_compute(f"user:{id}", lambda: render(select_user(id)))
"""

import logging
import random
import secrets
import time

import redis

log = logging.getLogger(__name__)


class Lease:
    """`client` may decode responses or not; `lease`, `ttl` and `patience` are seconds.

    `lease` is longer than `compute` takes, or its value is not stored. A `ttl` of None keeps a
    value until it is removed. Who waits for another reader longer than `patience` computes, too.
    """

    def __init__(self, client, lease=10.0, ttl=None, patience=2.0):
        self._client = client
        self._lease_ms = max(1, int(lease * 1000))
        self._ttl = [] if ttl is None else [max(1, int(ttl * 1000))]
        self._patience = patience

    def get_or_compute(self, key, compute):
        """The cached value, else what `compute()` gives: bytes or str, or None to store nothing.

        `compute` must read the database itself, on the primary, in a snapshot taken after the call.
        What it raises goes to the caller; what Redis raises is logged, and costs a computation.
        """
        state, value = self._ask(key)
        if state == "HIT":
            return value
        try:
            computed = compute()
        except BaseException:
            self._end(key, value, None)
            raise
        self._end(key, value, computed)
        return computed

    def _ask(self, key):
        """HIT and the value, MISS and the lease, or NONE: compute without a lease."""
        deadline = time.monotonic() + self._patience
        pause = 0.005
        while True:
            token = secrets.token_hex(16)
            try:
                reply = self._client.fcall("walsweep_lease_get", 1, key, token, self._lease_ms)
            except redis.RedisError as error:
                log.warning("read %s from the cache: %s", key, error)
                return "NONE", None
            state = reply[0] if isinstance(reply[0], str) else reply[0].decode()
            if state != "BUSY":
                return state, reply[1]
            if time.monotonic() + pause > deadline:
                return "NONE", None
            # Not all at once: each waits half to all of a pause that doubles up to 100 ms.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 0.1)

    def _end(self, key, lease, value):
        """Stores the value if the lease stands; without a value gives the lease back."""
        if lease is None:
            return
        try:
            if value is None:
                self._client.fcall("walsweep_lease_release", 1, key, lease)
            else:
                # 0 is no error: the key was removed meanwhile, and the next reader computes.
                self._client.fcall("walsweep_lease_set", 1, key, lease, value, *self._ttl)
        except redis.RedisError as error:
            log.warning("write %s to the cache: %s", key, error)
