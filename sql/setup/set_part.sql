-- Publishes a table with these columns and rows, or with all; at no moment without the table.
-- Privileges: owner of the publication and of the table. Versions: 15 to 18.
begin;
alter publication {publication} drop table {table};
{before}alter publication {publication} add table {table}{part};
commit
