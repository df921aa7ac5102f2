-- Where the primary's log ends.
-- Privileges: none. Versions: 14 and later; an error on a standby.
select pg_current_wal_lsn()::text
