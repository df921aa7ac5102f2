-- The publication, of no table yet: its comment remembers what is changed before tables are added.
-- Messages are streamed without a table. Privileges: CREATE on the database. Versions: 14 to 18.
create publication {publication}{options}
