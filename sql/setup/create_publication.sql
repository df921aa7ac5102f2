-- The publication, of named tables only, each with all its columns and rows. Each name has ONLY:
-- without it, the tables that inherit from it would be published, too.
-- Privileges: CREATE on the database, owner of each table. Versions: 14 to 18.
create publication {publication} for table {tables}{options}
