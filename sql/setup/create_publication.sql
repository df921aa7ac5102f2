-- The publication, of named tables only.
-- Privileges: CREATE on the database, owner of each table. Versions: 14 to 18; columns and rows 15.
create publication {publication} for table {tables}{options}
