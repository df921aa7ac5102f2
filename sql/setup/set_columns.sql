-- Publishes a table with these columns, or with all of them; at no moment without the table.
-- Privileges: owner of the publication and of the table. Versions: 15 to 18.
begin;
alter publication {publication} drop table {table};
alter publication {publication} add table {table}{columns};
commit
