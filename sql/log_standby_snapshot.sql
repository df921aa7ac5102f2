-- Writes to the log which transactions run: a slot that is being created on a standby waits for it.
-- Privileges: EXECUTE on the function, which only superusers have by default.
-- Versions: 16 and later.
select pg_catalog.pg_log_standby_snapshot()
