-- The publication, of no table: messages are streamed without one being named.
-- Privileges: CREATE on the database. Versions: 14 to 18.
create publication {publication}
