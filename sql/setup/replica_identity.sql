-- Writes whole old rows to the log.
-- Privileges: owner of the table. Versions: 14 to 18.
alter table {table} replica identity full
