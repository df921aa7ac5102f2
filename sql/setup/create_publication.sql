-- The publication, of named tables only, each with all its columns and rows.
-- Privileges: CREATE on the database, owner of each table. Versions: 14 to 18.
create publication {publication} for table {tables}{options}
