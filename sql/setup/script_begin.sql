-- Opens what is run of the script that walsweep prints: whatever path and encoding the session of
-- psql has, the names in the script are read as they are written, and none means an object that
-- somebody else put there; and each statement sees what was committed before it, as those have to
-- that wait for a lock and read then.
-- Privileges: none. Versions: 14 to 18.
set client_encoding = 'UTF8';
set search_path = pg_catalog, pg_temp;
set default_transaction_isolation = 'read committed'
