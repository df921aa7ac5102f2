-- The columns of a table or materialized view, in their order; no row for one that is not there.
-- Of each: name, the type (of a domain the one that it is made of), that type as SQL writes it if
-- it is a built-in one or an enum, whether it belongs to the replica identity; and of the relation:
-- whether it is a view, whether its replica identity is full.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It takes no
-- lock on the table.
-- $1 and $2 are schema and name.
with recursive relation as (
  select c.oid, c.relkind, c.relreplident
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
   where n.nspname = $1
     and c.relname = $2
     and c.relkind in ('r', 'p', 'm')
), made_of as (
  select a.attnum, a.attname, t.oid as type, t.typtype, t.typbasetype, t.typtypmod,
         a.atttypmod as modifier
    from relation r
    join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid
   union all
  select m.attnum, m.attname, t.oid, t.typtype, t.typbasetype, t.typtypmod,
         m.typtypmod
    from made_of m
    join pg_type t on t.oid = m.typbasetype
   where m.typtype = 'd'
), identity as (
  select key.attnum
    from relation r
    join pg_index i on i.indrelid = r.oid
   cross join lateral unnest(i.indkey) with ordinality as key (attnum, position)
   where key.position <= i.indnkeyatts
     and i.indisvalid and i.indisunique and i.indimmediate and i.indpred is null
     and case r.relreplident when 'd' then i.indisprimary
                             when 'i' then i.indisreplident
                             else false end
)
select m.attname::text,
       m.type,
       -- Oids from 16384 on are not the server's own. An enum's input function is.
       case when m.type < 16384 or m.typtype = 'e' then format_type(m.type, m.modifier) end,
       r.relreplident = 'f' or m.attnum in (select attnum from identity),
       r.relkind = 'm',
       r.relreplident = 'f'
  from relation r
 cross join made_of m
 where m.typtype <> 'd'
 order by m.attnum
