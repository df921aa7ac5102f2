-- The end of the log, for a look at what is confirmed. Privileges: none. Versions: 14 and later.
select pg_current_wal_lsn()::text
