-- What the checks look at of the rules' tables, the publication and the role, as one JSON text:
-- before the start, and again and again while it runs. The same catalog gives the same text.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. Columns that
-- came with a later version are read through to_jsonb, which gives null where there is none. It
-- takes no lock on any table that it asks about.
-- $1 and $2 are the schemas and names of the rules' tables, $3 the publication, $4 whether other
-- tables are wanted, for what was perhaps meant: they change without any change of these.
-- $5 is the user of the replication connection.
with recursive wanted as (
  select * from unnest($1::text[], $2::text[]) as wanted (schema, name)
), found as (
  select c.oid, c.relkind, n.nspname, c.relname
    from wanted w
    join pg_namespace n on n.nspname = w.schema
    join pg_class c on c.relnamespace = n.oid and c.relname = w.name
   where c.relkind in ('r', 'p', 'v', 'm', 'f')
), below as (
  select oid as parent, oid, relkind from found where relkind = 'p'
   union
  select b.parent, c.oid, c.relkind
    from below b
    join pg_inherits i on i.inhparent = b.oid
    join pg_class c on c.oid = i.inhrelid
), partition as (
  select parent, oid from below where relkind <> 'p'
), publication as (
  select * from pg_publication where pubname = $3
), member as (
  select oid from found union select oid from partition
), {published}, identity as (
  -- The index that the identity is made of, under the conditions of RelationGetIndexList
  -- (relcache.c); its INCLUDE columns are not part of it.
  select c.oid, jsonb_agg(a.attname order by key.position) as columns, min(x.relname) as index
    from member
    join pg_class c on c.oid = member.oid
    join pg_index i on i.indrelid = c.oid
    join pg_class x on x.oid = i.indexrelid
   cross join lateral unnest(i.indkey) with ordinality as key (attnum, position)
    join pg_attribute a on a.attrelid = c.oid and a.attnum = key.attnum
   where key.position <= i.indnkeyatts
     and i.indisvalid and i.indisunique and i.indimmediate and i.indpred is null
     and case c.relreplident when 'd' then i.indisprimary
                             when 'i' then i.indisreplident
                             else false end
   group by c.oid
), relation as (
  select c.oid, jsonb_build_object(
           'schema', n.nspname,
           'name', c.relname,
           'kind', c.relkind,
           'persistence', c.relpersistence,
           'identity', c.relreplident,
           'identity_columns', coalesce(identity.columns, '[]'),
           'identity_index', identity.index,
           'is_published', published.oid is not null) as shown
    from member
    join pg_class c on c.oid = member.oid
    join pg_namespace n on n.oid = c.relnamespace
    left join identity on identity.oid = c.oid
    left join published on published.oid = c.oid
), partitions as (
  select p.parent, jsonb_agg(leaf.shown order by leaf.oid) as shown
    from partition p
    join relation leaf on leaf.oid = p.oid
   group by p.parent
), heir as (
  select oid as parent, oid from found where relkind = 'r'
   union
  select h.parent, i.inhrelid
    from heir h
    join pg_inherits i on i.inhparent = h.oid
), foreign_heir as (
  -- A table that inherits from it, is no partition, and is named by no rule.
  select h.parent, min(n.nspname || '.' || c.relname) as name
    from heir h
    join pg_class c on c.oid = h.oid
    join pg_namespace n on n.oid = c.relnamespace
   where c.relpersistence <> 't' and c.oid not in (select oid from found)
   group by h.parent
), columns as (
  select f.oid, jsonb_agg(jsonb_build_object(
           'name', a.attname,
           'is_generated', a.attgenerated <> '',
           'is_virtual', a.attgenerated = 'v',
           -- What the stream says of a domain: the type that it is made of.
           'type_id', case when t.typtype <> 'd' then t.oid::bigint else (
                        with recursive base as (
                          select t.oid, t.typtype, t.typbasetype
                           union all
                          select next.oid, next.typtype, next.typbasetype
                            from base
                            join pg_type next on next.oid = base.typbasetype
                           where base.typtype = 'd'
                        )
                        select oid::bigint from base where typtype <> 'd') end)
           order by a.attnum) as shown
    from found f
    join pg_attribute a on a.attrelid = f.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid
   group by f.oid
), published_columns as (
  -- Since version 15. What has no list has all columns, and before 18 a list of all has the
  -- generated ones, too.
  select p.oid, jsonb_agg(a.attname order by a.attnum) as names
    from published p
    join found f on f.oid = p.oid
    join pg_attribute a on a.attrelid = p.oid and a.attnum > 0 and not a.attisdropped
   cross join (select to_jsonb(publication) as shown from publication) as publication
    left join listed on listed.oid = p.oid
                    and not (publication.shown ->> 'puballtables')::boolean
                    and p.oid not in (select oid from in_schemas)
   where current_setting('server_version_num')::int >= 150000
     and case when listed.numbers is not null
                then listed.numbers @> to_jsonb(a.attnum)
              when publication.shown ? 'pubgencols'
                then a.attgenerated = ''
                     or a.attgenerated = 's' and publication.shown ->> 'pubgencols' = 's'
              else true end
   group by p.oid
), other as (
  select p.oid, p.pubname, p.puballtables, p.pubviaroot, to_jsonb(p) ->> 'pubgencols' as gencols
    from pg_publication p
   where p.pubname <> $3 and (p.pubupdate or p.pubdelete)
), elsewhere as (
  -- Members that other publications have, and the relation that each has most of.
  select o.oid as publication, l.oid, (array_agg(l.ancestor order by l.height desc))[1] as top
    from other o
   cross join lineage l
    join pg_class c on c.oid = l.ancestor
   where c.relkind in ('r', 'p') and c.relpersistence = 'p' and c.oid >= 16384
     and (o.puballtables
          or exists (select from pg_publication_rel r
                      where r.prpubid = o.oid and r.prrelid = c.oid)
          or exists (select from schema_of s
                      where s.publication = o.oid and s.schema = c.relnamespace))
   group by o.oid, l.oid
), against_full as (
  -- With a full identity the server refuses UPDATE and DELETE of a member of which another
  -- publication has a column list, whatever it lists (since 15), or stored generated columns that
  -- it does not publish (since 18): pub_contains_invalid_column (publicationcmds.c).
  select e.oid, o.pubname, n.nspname || '.' || c.relname as name,
         case when nullif(to_jsonb(r) -> 'prattrs', 'null') is null
              then generated.name end as left_out
    from elsewhere e
    join other o on o.oid = e.publication
    join pg_class c on c.oid = e.oid and c.relpersistence = 'p'
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_publication_rel r on r.prpubid = o.oid
                                  and r.prrelid = case when o.pubviaroot then e.top else e.oid end
    left join lateral (select min(a.attname) as name
                         from pg_attribute a
                        where a.attrelid = e.oid and a.attnum > 0 and not a.attisdropped
                          and a.attgenerated = 's' and o.gencols <> 's') generated on true
   where nullif(to_jsonb(r) -> 'prattrs', 'null') is not null or generated.name is not null
), published_as as (
  -- The partitioned table under whose name a table's changes are published.
  select covered.oid, n.nspname || '.' || c.relname as name
    from covered
    join publication p on p.pubviaroot
    join pg_class c on c.oid = covered.top
    join pg_namespace n on n.oid = c.relnamespace
   where covered.top <> covered.oid
), is_listed as (
  -- What the publication names, or a table that it is a partition of.
  select l.oid from lineage l join listed on listed.oid = l.ancestor
), narrowed as (
  select listed.oid, listed.numbers, listed.filter
    from listed
    join published on published.oid = listed.oid
    join publication p on not p.puballtables
   where listed.oid not in (select oid from in_schemas)
), full_refused as (
  -- Another publication with which a full identity of a table would make writes fail.
  select distinct on (part.parent) part.parent as oid,
         jsonb_build_object('publication', a.pubname, 'name', a.name, 'column', a.left_out) as shown
    from (select oid as parent, oid from found
           union all
          select parent, oid from partition) part
    join against_full a on a.oid = part.oid
   order by part.parent, a.pubname, a.oid
), unnamed as (
  -- All that a publication has which does not publish every UPDATE and DELETE, by whatever way, and
  -- whether with a column list or a row filter, of which it is not asked what they are.
  select seed.oid, seed.is_narrow
    from (select r.prrelid as oid,
                 nullif(to_jsonb(r) -> 'prattrs', 'null') is not null
                   or nullif(to_jsonb(r) -> 'prqual', 'null') is not null as is_narrow
            from publication p
            join pg_publication_rel r on r.prpubid = p.oid
           where $4 and not (p.pubupdate and p.pubdelete)
           union
          select c.oid, false
            from publication p
            join pg_class c on c.relkind in ('r', 'p')
           where $4 and not (p.pubupdate and p.pubdelete)
             and (p.puballtables
                  or exists (select from schema_of s
                              where s.publication = p.oid and s.schema = c.relnamespace))) seed
   union
  select i.inhrelid, unnamed.is_narrow
    from unnamed
    join pg_inherits i on i.inhparent = unnamed.oid
    join pg_class c on c.oid = i.inhrelid and c.relispartition
), unnamed_identity as (
  -- As `identity`, of these tables.
  select i.indrelid as oid, bool_or(a.attgenerated <> '') as has_generated
    from unnamed
    join pg_class c on c.oid = unnamed.oid
    join pg_index i on i.indrelid = c.oid
   cross join lateral unnest(i.indkey) with ordinality as key (attnum, position)
    join pg_attribute a on a.attrelid = c.oid and a.attnum = key.attnum
   where key.position <= i.indnkeyatts
     and i.indisvalid and i.indisunique and i.indimmediate and i.indpred is null
     and case c.relreplident when 'd' then i.indisprimary
                             when 'i' then i.indisreplident
                             else false end
   group by i.indrelid
), tables as (
  select f.oid, jsonb_build_object(
           'relation', relation.shown,
           'columns', coalesce(columns.shown, '[]'),
           'partitions', coalesce(partitions.shown, '[]'),
           'heir', foreign_heir.name,
           'published_as', published_as.name,
           'is_listed', f.oid in (select oid from is_listed),
           'published_columns', published_columns.names,
           'has_column_list', f.oid in (select oid from narrowed where numbers is not null),
           'full_refused', full_refused.shown,
           -- What it says is not asked: to print it, the server would lock the table.
           'has_row_filter', f.oid in (select oid from narrowed where filter is not null)) as shown
    from found f
    join relation on relation.oid = f.oid
    left join columns on columns.oid = f.oid
    left join partitions on partitions.parent = f.oid
    left join foreign_heir on foreign_heir.parent = f.oid
    left join published_as on published_as.oid = f.oid
    left join published_columns on published_columns.oid = f.oid
    left join full_refused on full_refused.oid = f.oid
)
select jsonb_build_object(
  'publication', (select to_jsonb(p) || jsonb_build_object(
                           'owner', pg_get_userbyid(p.pubowner),
                           'owner_is_superuser', coalesce(
                             (select rolsuper from pg_roles where oid = p.pubowner), false),
                           'owner_owns', exists (
                             select from found
                               join pg_class c on c.oid = found.oid
                              where pg_has_role(p.pubowner, c.relowner, 'usage')),
                           'comment', obj_description(p.oid, 'pg_publication'))
                    from publication p),
  'user', current_user,
  'role', (select jsonb_build_object(
                    'name', r.rolname,
                    'may_replicate', r.rolreplication or r.rolsuper or coalesce(
                      (select pg_has_role(r.oid, rds.oid, 'member')
                         from pg_roles rds where rds.rolname = 'rds_replication'), false),
                    'is_rds', exists (select from pg_roles where rolname = 'rds_replication'))
             from pg_roles r
            where r.rolname = $5),
  'tables', (select coalesce(jsonb_agg(tables.shown order by tables.oid), '[]') from tables),
  'unidentified', (
    select coalesce(jsonb_agg(bare.name), '[]')
      from (select n.nspname || '.' || c.relname as name
              from unnamed
              join pg_class c on c.oid = unnamed.oid and c.relkind = 'r' and c.relpersistence = 'p'
                             and c.oid >= 16384
              join pg_namespace n on n.oid = c.relnamespace
             cross join (select to_jsonb(p) ->> 'pubgencols' as gencols from publication p) p
              left join unnamed_identity own on own.oid = c.oid
             where c.oid not in (select oid from member)
               and (c.relreplident <> 'f' and own.oid is null
                    or own.has_generated and p.gencols <> 's'
                    or c.relreplident = 'f' and exists (
                         select from pg_attribute a
                          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                            and (a.attgenerated = 's' and p.gencols <> 's'
                                 or a.attgenerated = 'v'))
                    or unnamed.is_narrow)
             order by 1
             limit 3) bare),
  'other_tables', (
    select coalesce(jsonb_agg(jsonb_build_object('schema', other.schema, 'name', other.name)), '[]')
      from (select n.nspname as schema, c.relname as name
              from pg_class c
              join pg_namespace n on n.oid = c.relnamespace
             where c.relkind in ('r', 'p')
               and n.nspname <> 'information_schema' and n.nspname not like 'pg\_%'
               and $4 and (select count(*) from wanted) > (select count(*) from found)
             limit 10000) other)
)::text
