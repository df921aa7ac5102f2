-- Which server, and which database of it, a session is of.
-- Privileges: none. Versions: 14 to 18.
-- The time when the server was started tells two of them apart that run now, to the microsecond.
-- The system identifier does not: whatever was restored from a backup has the one of the original;
-- and pg_control_system(), which tells it, may be taken from a role.
select pg_postmaster_start_time()::text, oid
  from pg_database
 where datname = current_database()
