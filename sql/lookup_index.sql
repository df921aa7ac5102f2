-- Whether an index serves a scan in the plan of a lookup: it has to begin with a column that is
-- compared. An index on an expression is believed to.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18.
-- $1 and $2 are schema and name of the table, $3 its alias in the plan, $4 the index that is read
-- if there is one, $5 the condition that it is read with, $6 all conditions of the plan, as EXPLAIN
-- prints them with VERBOSE.
-- One row: the table's size in bytes; schema and name of the table, or of the one that it is a
-- partition of; whether it is partitioned; whether an index serves; the first column, quoted, that
-- is compared with something else, those first that are compared with a parameter.
select coalesce(pg_relation_size(c.oid), 0),
       root_schema.nspname::text,
       root.relname::text,
       root.relkind = 'p',
       exists (select
                 from pg_index i
                 join pg_class x on x.oid = i.indexrelid,
                      lateral (select quote_ident($3) || '.' || pg_get_indexdef(x.oid, 1, true)
                              ) as first (name)
                where i.indrelid = c.oid
                  and x.relname = $4
                  and (i.indkey[0] = 0
                       or strpos($5, first.name || ' ') > 0
                       or strpos($5, first.name || ')') > 0)),
       (select quote_ident(a.attname)
          from pg_attribute a,
               lateral (select quote_ident($3) || '.' || quote_ident(a.attname)) as own (name)
         where a.attrelid = c.oid
           and a.attnum > 0
           and not a.attisdropped
           and (strpos($6, own.name || ' = ') > 0
                or strpos($6, own.name || ')::text = ') > 0
                or strpos($6, ' = ' || own.name || ')') > 0
                or strpos($6, ' = (' || own.name || ')::text') > 0)
         order by strpos($6, own.name || ' = $') > 0 or strpos($6, own.name || ')::text = $') > 0
                  desc,
                  a.attnum
         limit 1)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  join pg_class root on root.oid = coalesce(pg_partition_root(c.oid), c.oid)
  join pg_namespace root_schema on root_schema.oid = root.relnamespace
 where n.nspname = $1
   and c.relname = $2
