-- Lets the role use the names of a schema that a lookup reads from.
-- Privileges: owner of the schema. Versions: 14 to 18.
grant usage on schema {schema} to {role}
