-- The index that a lookup lacks. Privileges: the table's owner. Versions: 14 and later.
-- Nobody's writes wait for it.
create index concurrently on {table} ({column})
