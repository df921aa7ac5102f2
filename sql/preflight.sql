-- Everything that the checks before the start look at, read at once, as one JSON text.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. Columns that
-- came with a later version are read through to_jsonb, which gives null where there is none.
-- $1 and $2 are the schemas and names of the rules' tables, $3 the publication, $4 the slot, $5 the
-- user of the replication connection.
with wanted as (
  select * from unnest($1::text[], $2::text[]) as wanted (schema, name)
), found as (
  select c.oid, c.relkind, c.relispartition
    from wanted w
    join pg_namespace n on n.nspname = w.schema
    join pg_class c on c.relnamespace = n.oid and c.relname = w.name
   where c.relkind in ('r', 'p', 'v', 'm', 'f')
), partition as (
  select f.oid as parent, tree.relid::oid as oid
    from found f, pg_partition_tree(f.oid) tree
   where tree.isleaf and tree.relid <> f.oid
), publication as (
  select * from pg_publication where pubname = $3
), published as (
  select n.oid as schema, t.tablename as name, to_jsonb(t) as shown
    from pg_publication_tables t
    join pg_namespace n on n.nspname = t.schemaname
   where t.pubname = $3
), identity as (
  -- The index that the identity is made of, under the conditions of RelationGetIndexList
  -- (relcache.c); its INCLUDE columns are not part of it.
  select c.oid, jsonb_agg(a.attname) as columns
    from pg_class c
    join pg_index i on i.indrelid = c.oid
    cross join lateral unnest(i.indkey) with ordinality as key (attnum, position)
    join pg_attribute a on a.attrelid = c.oid and a.attnum = key.attnum
   where c.oid in (select oid from found union all select oid from partition)
     and key.position <= i.indnkeyatts
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
           'is_published', published.shown is not null) as shown
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    left join identity on identity.oid = c.oid
    left join published on published.schema = c.relnamespace and published.name = c.relname
   where c.oid in (select oid from found union all select oid from partition)
), tables as (
  select jsonb_build_object(
           'relation', relation.shown,
           'columns', (select coalesce(jsonb_agg(jsonb_build_object(
                                'name', a.attname, 'is_generated', a.attgenerated <> '',
                                'is_virtual', a.attgenerated = 'v',
                                'number', a.attnum,
                                -- Below FirstNormalObjectId (transam.h).
                                'is_builtin', a.atttypid < 16384 and a.attcollation < 16384,
                                -- What the stream says of a domain: the type that it is made of.
                                'type_id', (with recursive base as (
                                              select t.oid, t.typtype, t.typbasetype
                                                from pg_type t
                                               where t.oid = a.atttypid
                                               union all
                                              select t.oid, t.typtype, t.typbasetype
                                                from base
                                                join pg_type t on t.oid = base.typbasetype
                                               where base.typtype = 'd'
                                            )
                                            select oid::bigint from base where typtype <> 'd'),
                                'width', (select s.avg_width
                                            from pg_stats s
                                           where s.schemaname = relation.shown ->> 'schema'
                                             and s.tablename = relation.shown ->> 'name'
                                             and s.attname = a.attname
                                             and not s.inherited))
                                 order by a.attnum), '[]')
                         from pg_attribute a
                        where a.attrelid = f.oid and a.attnum > 0 and not a.attisdropped),
           'partitions', (select coalesce(jsonb_agg(leaf.shown), '[]')
                            from partition p
                            join relation leaf on leaf.oid = p.oid
                           where p.parent = f.oid),
           -- A table that inherits from it, is no partition, and is named by no rule.
           'heir', (with recursive heir as (
                      select inhrelid from pg_inherits where inhparent = f.oid
                       union
                      select i.inhrelid
                        from heir
                        join pg_inherits i on i.inhparent = heir.inhrelid
                    )
                    select n.nspname || '.' || c.relname
                      from heir
                      join pg_class c on c.oid = heir.inhrelid
                      join pg_namespace n on n.oid = c.relnamespace
                     where f.relkind = 'r'
                       and c.relpersistence <> 't'
                       and c.oid not in (select oid from found)
                     order by 1
                     limit 1),
           'is_inherited', exists (select from pg_inherits i
                                    where f.oid in (i.inhparent, i.inhrelid)),
           -- The partitioned table under whose name this one's changes are published.
           'published_as', (select n.nspname || '.' || c.relname
                              from pg_partition_ancestors(f.oid) as up (relid)
                              join pg_class c on c.oid = up.relid
                              join pg_namespace n on n.oid = c.relnamespace
                              join published on published.schema = c.relnamespace
                                            and published.name = c.relname
                             where up.relid <> f.oid
                             limit 1),
           -- Whether the publication names it or a table that it is a partition of.
           'is_listed', exists (select
                                  from pg_publication_rel r
                                  join publication on publication.oid = r.prpubid
                                 where r.prrelid = f.oid
                                    or r.prrelid in (select relid
                                                       from pg_partition_ancestors(f.oid) up)),
           'published_columns', published.shown -> 'attnames',
           'row_filter', published.shown ->> 'rowfilter') as shown
    from found f
    join relation on relation.oid = f.oid
    join pg_class c on c.oid = f.oid
    left join published on published.schema = c.relnamespace and published.name = c.relname
)
select jsonb_build_object(
  'backend_pid', pg_backend_pid(),
  'database', current_database(),
  'is_in_recovery', pg_is_in_recovery(),
  'wal_level', current_setting('wal_level'),
  'version', current_setting('server_version_num')::int,
  'slot_keep_size', (select setting from pg_settings where name = 'max_slot_wal_keep_size'),
  -- Since 18, in seconds; 0 is never.
  'idle_slot_timeout', (select extract(epoch from (setting || unit)::interval)::bigint
                          from pg_settings where name = 'idle_replication_slot_timeout'),
  -- Since 17: standbys that have to have the log before a failover slot is sent it, and do not
  -- stream at the moment.
  'absent_standbys', (
    select coalesce(jsonb_agg(named.slot), '[]')
      from pg_settings setting,
           regexp_split_to_table(setting.setting, '\s*,\s*') as named (slot)
     where setting.name = 'synchronized_standby_slots'
       and named.slot <> ''
       and not exists (select from pg_replication_slots s
                        where s.slot_name = trim(both '" ' from named.slot) and s.active)),
  'synchronous_commit', (select reset_val from pg_settings where name = 'synchronous_commit'),
  -- Roles and databases for which it is off, as far as they concern this database.
  'asynchronous', (
    select coalesce(jsonb_agg(case when r.rolname is null then 'every role'
                                   else 'role `' || r.rolname || '`' end order by r.rolname), '[]')
      from pg_db_role_setting s
      left join pg_roles r on r.oid = s.setrole
     where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
       and exists (select from unnest(s.setconfig) as setting
                    where lower(setting) in ('synchronous_commit=off', 'synchronous_commit=false',
                                             'synchronous_commit=no', 'synchronous_commit=0'))),
  -- Since 16; a slot on a standby is created sooner with it.
  'may_log_snapshot', (select has_function_privilege(p.oid, 'execute')
                         from pg_proc p
                        where p.proname = 'pg_log_standby_snapshot'
                          and p.pronamespace = 'pg_catalog'::regnamespace),
  'slots_max', current_setting('max_replication_slots')::int,
  'slots_used', (select count(*) from pg_replication_slots),
  'senders_max', current_setting('max_wal_senders')::int,
  'senders_used', (select count(*) from pg_stat_replication),
  'role', (select jsonb_build_object(
                    'name', r.rolname,
                    'may_replicate', r.rolreplication or r.rolsuper or coalesce(
                      (select pg_has_role(r.oid, rds.oid, 'member')
                         from pg_roles rds where rds.rolname = 'rds_replication'), false),
                    'is_rds', exists (select from pg_roles where rolname = 'rds_replication'))
             from pg_roles r
            where r.rolname in ($5, current_user)
            order by r.rolname = $5 desc
            limit 1),
  -- The administrators' role by which a managed service is known.
  'service', (select min(rolname) from pg_roles
               where rolname in ('rds_superuser', 'cloudsqlsuperuser', 'alloydbsuperuser',
                                 'azure_pg_admin', 'neon_superuser')),
  -- Of whatever database: a new slot waits for each.
  'prepared', (select jsonb_build_object(
                        'count', count(*),
                        'seconds', coalesce(extract(epoch from now() - min(p.prepared))::bigint, 0))
                 from pg_prepared_xacts p),
  'slot', (select to_jsonb(s) from pg_replication_slots s where s.slot_name = $4),
  'publication', (select to_jsonb(p) from publication p),
  'tables', (select coalesce(jsonb_agg(tables.shown), '[]') from tables),
  'other_tables', (
    select coalesce(jsonb_agg(jsonb_build_object('schema', other.schema, 'name', other.name)), '[]')
      from (select n.nspname as schema, c.relname as name
              from pg_class c
              join pg_namespace n on n.oid = c.relnamespace
             where c.relkind in ('r', 'p')
               and n.nspname <> 'information_schema' and n.nspname not like 'pg\_%'
               and (select count(*) from wanted) > (select count(*) from found)
             limit 10000) other)
)::text
