-- More tables in the publication, each with all its columns and rows. Each name has ONLY: without
-- it, the tables that inherit from it would be published, too. The partitions of a partitioned
-- table go with it all the same.
-- Privileges: owner of the publication and of each table. Versions: 14 to 18.
alter publication {publication} add table {tables}
