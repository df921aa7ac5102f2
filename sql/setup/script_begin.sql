-- Opens what is run of the script that walsweep prints: whatever path and encoding the session of
-- psql has, the names in the script are read as they are written, and none means an object that
-- somebody else put there; and each statement sees what was committed before it, as those have to
-- that wait for a lock and read then. None waits for a standby when it commits, and no limit of the
-- role ends it while it waits. What the session had is kept for the end. An open transaction of
-- whoever runs this would be committed with the first part: so that is refused. And whatever an
-- earlier run of a script has made, this one has not.
-- Privileges: none. Versions: 14 to 18. {settings} are the names of what is changed, {made} is
-- where the slot is noted that a script has made. A setting that the server does not know is left
-- out.
do $setup$
declare
  setting pg_catalog.text;
begin
  if pg_catalog.transaction_timestamp()
     operator(pg_catalog.<>) pg_catalog.statement_timestamp() then
    raise sqlstate 'WS005' using
      message = 'this has to be run outside a transaction block',
      hint = 'psql without -1, and with AUTOCOMMIT on; commit what is open first';
  end if;
  perform pg_catalog.set_config('{made}', '', false);
  foreach setting in array array[{settings}] loop
    perform pg_catalog.set_config(pg_catalog.concat('walsweep.', setting),
                                  coalesce(pg_catalog.current_setting(setting, true), ''), false);
  end loop;
  if pg_catalog.current_setting('transaction_timeout', true) is not null then
    perform pg_catalog.set_config('transaction_timeout', '0', false);
  end if;
end
$setup$;
set client_encoding = 'UTF8';
set search_path = pg_catalog, pg_temp;
set default_transaction_isolation = 'read committed';
set synchronous_commit = 'local';
set default_transaction_read_only = off;
set default_transaction_deferrable = off;
set statement_timeout = 0
