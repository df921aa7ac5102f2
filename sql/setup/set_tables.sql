-- Publishes these tables and no others, each with all its columns and rows.
-- Privileges: owner of the publication and of each table. Versions: 14 to 18.
alter publication {publication} set table {tables}
