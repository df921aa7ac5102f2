-- One table less in the publication.
-- Privileges: owner of the publication. Versions: 14 to 18.
alter publication {publication} drop table {table}
