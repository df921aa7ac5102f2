-- What a role lacks to run the query of a lookup: rights on the tables and views that the query
-- names, and on their schemas. Privileges: none. Versions: 14 to 18.
-- $1 is the role, $2 the query. Where sql/lookup_body.sql made a function of the query, that tells
-- what it depends on; a query with a schema that the role may not use is not parsed, and then alone
-- the qualified names in its text do, without their quotes and outside of comments. Rows: schema,
-- relation, whether USAGE is missing, and SELECT; the owners of the schema and of the relation.
with role as (
  select oid from pg_roles where rolname = $1
), relation as (
  select d.refobjid as oid
    from pg_proc p
    join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid
   where p.pronamespace = pg_my_temp_schema() and p.proname = 'walsweep_lookup'
     and d.refclassid = 'pg_class'::regclass
   union
  select c.oid
    from pg_namespace n
    join pg_class c on c.relnamespace = n.oid and c.relkind in ('r', 'p', 'v', 'm', 'f')
   where not coalesce((select has_schema_privilege(role.oid, n.oid, 'usage') from role), false)
     and not exists (select from pg_proc
                      where pronamespace = pg_my_temp_schema() and proname = 'walsweep_lookup')
     and lower(translate(regexp_replace($2, '/\*.*?\*/|--[^\n]*', ' ', 'g'), '"', ''))
         ~ ('(^|[^[:alnum:]_$.])'
            || regexp_replace(lower(n.nspname || '.' || c.relname),
                              '([.^$*+?(){}|\[\]\\-])', '\\\1', 'g')
            || '($|[^[:alnum:]_$])')
)
select n.nspname::text, c.relname::text,
       not coalesce((select has_schema_privilege(role.oid, n.oid, 'usage') from role), false),
       not coalesce((select has_table_privilege(role.oid, c.oid, 'select') from role), false),
       pg_get_userbyid(n.nspowner)::text, pg_get_userbyid(c.relowner)::text
  from relation
  join pg_class c using (oid)
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid >= 16384
 order by 1, 2
