-- Publishes a table with all its columns and rows; at no moment without the table.
-- One transaction. What inherits from it stays as it is.
-- Privileges: owner of the publication and of the table. Versions: 14 to 18.
alter publication {publication} drop table only {table};
alter publication {publication} add table only {table}
