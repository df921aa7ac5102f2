-- Under which relations changes of a lookup's table may come, $1 by oid, and what the publication
-- $2 tells of old rows: the table, what it is a partition of, and its own partitions and heirs.
-- Rows: oid, schema, name; whether the relation holds rows that are published, and without a full
-- replica identity; the columns of its identity then.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18.
with recursive above as (
  select $1::oid as oid
   union all
  select i.inhparent
    from above
    join pg_class c on c.oid = above.oid and c.relispartition
    join pg_inherits i on i.inhrelid = above.oid
), below as (
  select $1::oid as oid
   union
  select i.inhrelid
    from below
    join pg_inherits i on i.inhparent = below.oid
), member as (
  select oid from above
   union
  select oid from below
), publication as (
  select * from pg_publication where pubname = $2
), {published}
select c.oid, n.nspname::text, c.relname::text,
       c.relkind = 'r' and c.relreplident <> 'f' and covered.oid is not null,
       array(select a.attname::text
               from pg_index i
               join pg_attribute a on a.attrelid = c.oid and a.attnum = any (i.indkey)
              where i.indrelid = c.oid
                and case c.relreplident
                      when 'd' then i.indisprimary
                      when 'i' then i.indisreplident
                      else false
                    end)
  from member
  join pg_class c on c.oid = member.oid
  join pg_namespace n on n.oid = c.relnamespace
  left join covered on covered.oid = member.oid
 order by 2, 3
