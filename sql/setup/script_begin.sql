-- Opens what is run of the script that walsweep prints: whatever path the session of psql has, no
-- name in the script means an object that somebody else put there; and each statement sees what was
-- committed before it, as those have to that wait for a lock and read then.
-- Privileges: none. Versions: 14 to 18.
set search_path = pg_catalog, pg_temp;
set default_transaction_isolation = 'read committed'
