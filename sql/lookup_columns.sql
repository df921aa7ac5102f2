-- The columns of a lookup's table, $1 by oid, and of the tables whose changes give its parameters,
-- $2 and $3 by schema and name.
-- Rows: whether the table is the lookup's, and whether it gives parameters; number and name; the
-- type, of a domain the one that it is made of; whether the collation takes no two texts for equal.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18.
select c.oid = $1,
       given.is_it,
       a.attnum,
       a.attname::text,
       (with recursive base as (
          select t.oid, t.typtype, t.typbasetype
           union all
          select next.oid, next.typtype, next.typbasetype
            from base
            join pg_type next on next.oid = base.typbasetype
           where base.typtype = 'd'
        )
        select oid from base where typtype <> 'd'),
       coalesce(l.collisdeterministic, true)
  from pg_attribute a
  join pg_class c on c.oid = a.attrelid
  join pg_namespace n on n.oid = c.relnamespace
  join pg_type t on t.oid = a.atttypid
  left join pg_collation l on l.oid = a.attcollation
 cross join lateral (
         select exists (select
                          from unnest($2::text[], $3::text[]) as one (schema, name)
                         where one.schema = n.nspname and one.name = c.relname) as is_it
       ) as given
 where a.attnum > 0
   and not a.attisdropped
   and (c.oid = $1 or given.is_it)
