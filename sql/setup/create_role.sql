-- The role of walsweep: it may replicate and log in, no more. One that is there keeps its password.
-- Privileges: superuser; since 16 also CREATEROLE with REPLICATION, and ADMIN of the role; on
-- Amazon RDS and Aurora rds_superuser, which grants the right by a role of the service.
-- Versions: 14 to 18. Somebody else may make it at the same time.
do {quote}
begin
  begin
    if exists (select from pg_catalog.pg_roles where rolname operator(pg_catalog.=) {name}) then
      alter role {role} login;
    else
      create role {role} login{password};
    end if;
  exception when duplicate_object or unique_violation then
    alter role {role} login;
  end;
  if exists (select from pg_catalog.pg_roles
              where rolname operator(pg_catalog.=) 'rds_replication') then
    grant rds_replication to {role};
  else
    alter role {role} replication;
  end if;
end
{quote}
