-- Opens what is run of the script that walsweep prints: whatever path and encoding the session of
-- psql has, the names in the script are read as they are written, and none means an object that
-- somebody else put there; and each statement sees what was committed before it, as those have to
-- that wait for a lock and read then. None waits for a standby when it commits. What the session
-- had is kept for the end.
-- Privileges: none. Versions: 14 to 18. {settings} are the names of what is changed.
do $setup$
declare
  setting pg_catalog.text;
begin
  foreach setting in array array[{settings}] loop
    perform pg_catalog.set_config(pg_catalog.concat('walsweep.', setting),
                                  pg_catalog.current_setting(setting), false);
  end loop;
end
$setup$;
set client_encoding = 'UTF8';
set search_path = pg_catalog, pg_temp;
set default_transaction_isolation = 'read committed';
set synchronous_commit = 'local'
