-- A text that is another one when a transaction that had not ended when $1, an xid, was the oldest
-- of those that ran has changed any catalog that the looks at the tables look at (sql/shape.sql,
-- sql/lookup_shape.sql, sql/preflight_tables.sql, sql/preflight_views.sql, with sql/published.sql),
-- or when settings were read anew. It reads each catalog once, as it lies: what it costs grows with
-- the catalog, and not with what the rules name.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It takes no
-- lock on any table that it asks about.
-- Whatever is inserted or updated has the xmin of its transaction, be it frozen since, and whoever
-- ran has one that is not older. A row that is deleted is one less of its catalog; of columns,
-- their defaults and indexes none goes without a row of pg_class, or a newer one of its own. Names
-- and attributes of roles are read from a view, which has no xmin: also those by which a role reads
-- more or less than before (inheritance, row security), so that lookups are tried again.
-- Tables of a session alone do not count: applications make them all the time, and no rule names
-- one. An xid is compared around its 32 bits, so it may not become too old.
with temporary as (
  select oid from pg_namespace where nspname ~ '^pg_(toast_)?temp_'
)
select concat_ws(' ', pg_conf_load_time(), age($1::text::xid) not between 0 and 1000000000,
  (select concat_ws(' ', count(*), sum(hashtextextended(xmin::text, 0))
                                     filter (where age(xmin) <= (select age($1::text::xid))))
     from pg_class
    where relpersistence <> 't'),
  'attributes',
  (select sum(hashtextextended(a.xmin::text, 0))
     from pg_attribute a
    where age(a.xmin) <= (select age($1::text::xid))
      and (select c.relpersistence from pg_class c where c.oid = a.attrelid)
          is distinct from 't'),
  'defaults',
  (select sum(hashtextextended(d.xmin::text, 0))
     from pg_attrdef d
    where age(d.xmin) <= (select age($1::text::xid))
      and (select c.relpersistence from pg_class c where c.oid = d.adrelid)
          is distinct from 't'),
  'indexes',
  (select sum(hashtextextended(i.xmin::text, 0))
     from pg_index i
    where age(i.xmin) <= (select age($1::text::xid))
      and (select c.relpersistence from pg_class c where c.oid = i.indrelid)
          is distinct from 't'),
  'types',
  (select concat_ws(' ', count(*), sum(hashtextextended(xmin::text, 0))
                                     filter (where age(xmin) <= (select age($1::text::xid))))
     from pg_type
    where typnamespace not in (select oid from temporary)),
  'others',
  (select string_agg(concat_ws(' ', other.catalog, other.rows, coalesce(other.written, 0)), ' '
                     order by other.catalog)
     from (select known.catalog, count(*) as rows,
                  sum(hashtextextended(known.version::text, 0))
                    filter (where age(known.version) <= (select age($1::text::xid))) as written
             from (select 1 as catalog, xmin as version
                     from pg_namespace
                    where oid not in (select oid from temporary)
                    union all
                   select 2, xmin from pg_enum
                    union all
                   select 3, xmin from pg_range
                    union all
                   select 4, xmin from pg_inherits
                    union all
                   select 5, xmin from pg_proc
                    union all
                   select 6, xmin from pg_event_trigger
                    union all
                   select 7, xmin from pg_publication
                    union all
                   select 8, xmin from pg_publication_rel
                    union all
                   -- The schemas of publications, which pg_publication_namespace has from 15 on.
                   select 9, xmin
                     from pg_depend
                    where refclassid = 'pg_catalog.pg_publication'::regclass
                    union all
                   select 10, xmin from pg_auth_members
                    union all
                   -- Comments of publications and of the function of an event trigger.
                   select 11, xmin from pg_description where objoid >= 16384
                    union all
                   select 12, xmin from pg_policy
                    union all
                   select 13, xmin from pg_db_role_setting) as known
            group by known.catalog) as other),
  'roles',
  (select sum(hashtextextended(concat_ws(' ', oid, rolname, rolsuper, rolinherit, rolreplication,
                                         rolbypassrls), 0))
     from pg_roles))
