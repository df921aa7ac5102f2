-- Lets the role log in to the database.
-- Privileges: owner of the database. Versions: 14 to 18.
grant connect on database {database} to {role}
