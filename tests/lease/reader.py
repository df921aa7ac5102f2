"""An application's readers, on orders from standard input; tests/lease/python.rs gives them.

Orders: `lease ID KEY` and `plain ID KEY` start a reader; `value ID TEXT` and `fail ID` end its
computation. Says: `compute ID`, then `done ID TEXT` or `failed ID`.
"""

import queue
import sys
import threading

import redis

sys.path.insert(0, sys.argv[1])
from lease import Lease  # noqa: E402

client = redis.Redis.from_url(sys.argv[2], decode_responses=sys.argv[3] == "text")
cache = Lease(client, lease=60, patience=float(sys.argv[4]))
answers = {}


def say(*words):
    # One call: lines of several threads must not mix.
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def plain(key, compute):
    """What applications do without the lease."""
    value = client.get(key)
    if value is None:
        value = compute()
        client.set(key, value)
    return value


def read(how, number, key):
    def compute():
        say("compute", number)
        value = answers[number].get()
        if value is None:
            raise ValueError("the database is gone")
        return value

    try:
        value = how(key, compute)
    except ValueError:
        say("failed", number)
        return
    say("done", number, value if isinstance(value, str) else value.decode())


for line in sys.stdin:
    order, number, *rest = line.rstrip("\n").split(" ", 2)
    if order in ("lease", "plain"):
        answers[number] = queue.Queue()
        how = cache.get_or_compute if order == "lease" else plain
        threading.Thread(target=read, args=(how, number, rest[0]), daemon=True).start()
    else:
        answers[number].put(rest[0] if order == "value" else None)
