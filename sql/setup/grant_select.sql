-- Lets the role read a table, or a view, that a lookup reads.
-- Privileges: owner of the table. Versions: 14 to 18.
grant select on {table} to {role}
