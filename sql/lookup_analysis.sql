-- Begins the transaction in which a lookup's query is analyzed, which is always rolled back.
-- Privileges: none. Versions: 14 and later.
start transaction read write;
set local statement_timeout = '3s'
