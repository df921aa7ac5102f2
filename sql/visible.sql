-- What new snapshots see on this server, for the visibility gate.
-- Privileges: none. Versions: 14 and later (pg_current_snapshot since 13).
-- Both values come from one statement, so that a server which turned standby cannot answer the
-- second without the first saying so: on a standby the list of running transactions is empty
-- (procarray.c, GetSnapshotData) and the test would pass for transactions that still run.
select pg_is_in_recovery(), pg_current_snapshot()::text
