-- Closes what is run of the script that walsweep prints: psql's session goes on with its own path
-- and isolation. Privileges: none. Versions: 14 to 18.
reset search_path;
reset default_transaction_isolation
