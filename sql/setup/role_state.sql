-- Whether a role is there, may log in and replicate, and may connect to this database.
-- Privileges: none. Versions: 14 to 18. $1 is its name. No row: there is no such role.
select r.rolcanlogin,
       r.rolsuper or r.rolreplication or coalesce(
         (select pg_has_role(r.oid, rds.oid, 'member')
            from pg_roles rds where rds.rolname = 'rds_replication'), false),
       has_database_privilege(r.oid, current_database(), 'connect')
  from pg_roles r
 where r.rolname = $1
