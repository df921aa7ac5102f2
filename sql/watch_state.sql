-- The state of the sessions that watch tables and the slot while walsweep runs. Privileges: none.
-- Versions: 14 and later. Their questions lock no table; what is behind a lock on the catalog
-- itself, or on a server that has no time, is given up and asked again. Nor do they take processes
-- that could help the application's queries.
set statement_timeout = '8s';
set lock_timeout = '1s';
set jit = off;
set max_parallel_workers_per_gather = 0
