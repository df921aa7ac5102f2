-- Closes what is run of the script that walsweep prints: psql's session goes on with its own path,
-- isolation and encoding. Privileges: none. Versions: 14 to 18.
reset search_path;
reset default_transaction_isolation;
reset client_encoding
