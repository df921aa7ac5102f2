-- The state of the session that watches while walsweep runs. Privileges: none. Versions: 14 and
-- later. Its questions lock no table; what is behind a lock on the catalog itself, or on a server
-- that has no time, is given up and asked again: the state of the slot is asked on the same
-- session.
set statement_timeout = '8s';
set lock_timeout = '1s';
set jit = off
