-- Lets a role write to the log which transactions run.
-- Privileges: superuser. Versions: 16 to 18.
grant execute on function pg_catalog.pg_log_standby_snapshot() to {role}
