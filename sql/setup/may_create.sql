-- Whether the role of the session may make publications in this database.
-- Privileges: none. Versions: 14 to 18.
select has_database_privilege(current_database(), 'create')
