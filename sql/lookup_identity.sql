-- Under which relations changes of a lookup's table may come, $1 by oid, and what the publication
-- $2 tells of old rows: the table, what it is a partition of, and its own partitions and heirs.
-- Rows: oid, schema, name; whether its replica identity counts and is not a full one; the columns
-- that it has then; what the identity is, and its index if it is one; why a full one must not be
-- set, or null: with one the server refuses UPDATE and DELETE where a publication has a column list
-- of the table (since 15), or generated columns are not published (since 18). That is told of any
-- list, and since 18 of any generated column, rather than too late. At last, schema and name of the
-- relation that is published with it, the same or a table that it is a partition of.
-- What the log has of an old row says the identity of the relation that holds it; which columns of
-- that are marked as known says the identity of the relation under whose name it is published
-- (logicalrep_write_update and logicalrep_write_attrs, proto.c). So both count.
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
       c.relreplident <> 'f'
         and covered.oid is not null
         and (c.relkind = 'r' and c.relpersistence = 'p'
              or c.relkind = 'p' and covered.top = c.oid and publication.pubviaroot),
       array(select a.attname::text
               from pg_index i
              cross join lateral unnest(i.indkey) with ordinality as key (attnum, position)
               join pg_attribute a on a.attrelid = c.oid and a.attnum = key.attnum
              where i.indrelid = c.oid
                and key.position <= i.indnkeyatts
                and i.indisvalid and i.indisunique and i.indimmediate and i.indpred is null
                and case c.relreplident
                      when 'd' then i.indisprimary
                      when 'i' then i.indisreplident
                      else false
                    end),
       c.relreplident,
       (select x.relname::text
          from pg_index i
          join pg_class x on x.oid = i.indexrelid
         where i.indrelid = c.oid and i.indisreplident),
       case when listed.name is not null
              then 'publication "' || listed.name || '" has a column list'
            when current_setting('server_version_num')::int >= 180000
                 and exists (select from pg_attribute a
                              where a.attrelid = c.oid and a.attnum > 0 and a.attgenerated <> '')
              then 'the table has a generated column' end,
       top_schema.nspname::text, top.relname::text
  from member
  join pg_class c on c.oid = member.oid
  join pg_namespace n on n.oid = c.relnamespace
  left join publication on true
  left join covered on covered.oid = member.oid
  join pg_class top on top.oid = coalesce(covered.top, c.oid)
  join pg_namespace top_schema on top_schema.oid = top.relnamespace
 cross join (select min(p.pubname) as name
               from pg_publication p
               join pg_publication_rel r on r.prpubid = p.oid
              where r.prrelid in (select oid from member)
                and nullif(to_jsonb(r) -> 'prattrs', 'null') is not null) as listed
 order by 2, 3
