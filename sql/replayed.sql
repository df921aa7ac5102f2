-- How far a standby has replayed, and which run of the server says so.
-- Privileges: none (pg_last_wal_replay_lsn is open to all by default). Versions: 14 and later.
-- One statement: a server that was promoted keeps telling its last position. Asked over a
-- replication connection, which takes no parameters.
-- A commit is visible on the standby when this position has reached the commit record's end: redo
-- marks it committed before the position moves (xlogrecovery.c, ApplyWalRecord).
select pg_is_in_recovery(),
       pg_last_wal_replay_lsn()::text,
       extract(epoch from pg_postmaster_start_time())::text
