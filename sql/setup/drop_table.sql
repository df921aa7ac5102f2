-- One table less in the publication; without ONLY, also without those that inherit from it.
-- Privileges: owner of the publication. Versions: 14 to 18.
alter publication {publication} drop table only {table}
