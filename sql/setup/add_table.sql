-- One more table in the publication; without ONLY, also those that inherit from it. The partitions
-- of a partitioned table go with it all the same.
-- Privileges: owner of the publication and of the table. Versions: 14 to 18.
alter publication {publication} add table only {table}
