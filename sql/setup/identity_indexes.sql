-- Which indexes may be the replica identity of their tables (ATExecReplicaIdentity of
-- tablecmds.c).
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It locks none.
-- $1 and $2 are schemas and names of tables, $3 their indexes' names. Rows: those that may.
select wanted.schema, wanted.name, wanted.index
  from unnest($1::text[], $2::text[], $3::text[]) as wanted (schema, name, index)
  join pg_namespace n on n.nspname = wanted.schema
  join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
  join pg_class x on x.relnamespace = n.oid and x.relname = wanted.index
  join pg_index i on i.indexrelid = x.oid and i.indrelid = c.oid
 where i.indisunique and i.indisvalid and i.indimmediate
   and i.indpred is null and i.indexprs is null
   and not exists (select
                     from unnest(i.indkey) with ordinality as key (attnum, position)
                     left join pg_attribute a on a.attrelid = c.oid and a.attnum = key.attnum
                    where key.position <= i.indnkeyatts
                      and not coalesce(a.attnotnull, false))
