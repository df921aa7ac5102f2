-- One more table in the publication.
-- Privileges: owner of the publication and of the table. Versions: 14 to 18.
alter publication {publication} add table {table}
