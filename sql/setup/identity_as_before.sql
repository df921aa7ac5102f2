-- Gives a table the replica identity back that it had before `setup`.
-- Privileges: owner of the table. Versions: 14 to 18.
alter table {table} replica identity {identity}
