-- Lets a role replicate.
-- Privileges: superuser; since 16 also CREATEROLE with REPLICATION and ADMIN of the role.
-- Versions: 14 to 18.
alter role {role} replication
