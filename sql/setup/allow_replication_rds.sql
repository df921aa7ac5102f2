-- Lets a role replicate, on Amazon RDS and Aurora.
-- Privileges: rds_superuser. Versions: 14 to 18.
grant rds_replication to {role}
