-- What a role has been granted in this database of the kinds that `setup` grants, each as the
-- statement that takes it back; and whether it is there for walsweep alone.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It locks none.
-- $1 is the role. No row: there is no such role. Whether it is a superuser; whether it owns
-- anything in the cluster; the statements, at most 21.
with role as (
  select oid, rolname, rolsuper from pg_roles where rolname = $1
), granted as (
  select 1 as kind, format('revoke connect on database %I from %I', d.datname, role.rolname) as sql
    from role, pg_database d, aclexplode(d.datacl) acl
   where d.datname = current_database() and d.datdba <> role.oid
     and acl.grantee = role.oid and acl.privilege_type = 'CONNECT'
   union
  select 2, format('revoke usage on schema %I from %I', n.nspname, role.rolname)
    from role, pg_namespace n, aclexplode(n.nspacl) acl
   where n.nspowner <> role.oid and acl.grantee = role.oid and acl.privilege_type = 'USAGE'
   union
  select 3, format('revoke select on %I.%I from %I', n.nspname, c.relname, role.rolname)
    from role, pg_class c join pg_namespace n on n.oid = c.relnamespace, aclexplode(c.relacl) acl
   where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relowner <> role.oid
     and acl.grantee = role.oid and acl.privilege_type = 'SELECT'
   union
  select 4, format('revoke execute on function pg_catalog.%I() from %I', p.proname, role.rolname)
    from role, pg_proc p, aclexplode(p.proacl) acl
   where p.proname = 'pg_log_standby_snapshot' and p.pronamespace = 'pg_catalog'::regnamespace
     and p.proowner <> role.oid and acl.grantee = role.oid
)
select role.rolsuper,
       exists (select from pg_shdepend
                where refclassid = 'pg_authid'::regclass and refobjid = role.oid
                  and deptype = 'o'),
       array(select sql from granted order by kind, sql limit 21)
  from role
