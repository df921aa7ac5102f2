-- Around a statement that gives a table another replica identity: it is undone if another
-- publication has the table in a way that goes with the old one alone, for then every UPDATE and
-- DELETE of the application would fail. That was asked before, but whoever made the publication may
-- have been faster than this, which waited for its lock. So it is asked again under the lock: who
-- publishes the table by name, or one that it is a partition of, waits for that. Not so who
-- publishes every table, or a schema, or changes what a publication publishes.
-- Tables above it are locked first, the topmost before all, as everybody does who changes
-- partitions; nobody who reads or writes waits for that. Who may not lock them cannot know.
-- Privileges: those of the statement. Versions: 14 to 18. {relation} is the table, {name} is
-- walsweep's publication, {forbids} what of another one, p, forbids it; {entry} the same of its
-- entry for the table, r; {always} what forbids it whoever publishes the table.
do {quote}
declare
  relation pg_catalog.oid := {relation}::pg_catalog.regclass;
  above constant pg_catalog.oid[] := array(
    select a.one::pg_catalog.oid from pg_catalog.pg_partition_ancestors(relation)
                                        with ordinality as a (one, number)
     where a.one::pg_catalog.oid operator(pg_catalog.<>) relation
     order by a.number using operator(pg_catalog.>));
  members pg_catalog.oid[];
  in_schema pg_catalog.oid[] := array[]::pg_catalog.oid[];
  other pg_catalog.text;
begin
  for position in 1..coalesce(pg_catalog.array_length(above, 1), 0) loop
    begin
      execute (select pg_catalog.format('lock table only %I.%I in share update exclusive mode',
                                        n.nspname, c.relname)
                 from pg_catalog.pg_class c
                 join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace
                where c.oid operator(pg_catalog.=) above[position]);
    exception when insufficient_privilege then
      null;
    end;
  end loop;
  {statement};
  -- The name may mean another table since, and that may be a partition of another one.
  relation := {relation}::pg_catalog.regclass;
  members := array(
    select a::pg_catalog.oid from pg_catalog.pg_partition_ancestors(relation) as a
     union select relation);
  if not members operator(pg_catalog.<@) (above operator(pg_catalog.||) relation) then
    raise sqlstate 'WS001' using
      message = 'the table is a partition of another one since: print this SQL again';
  end if;
  if {always} then
    raise sqlstate 'WS001' using
      message = 'the table has a virtual generated column since: print this SQL again';
  end if;
  if pg_catalog.to_regclass('pg_catalog.pg_publication_namespace') is not null then
    execute 'select array(select n.pnpubid from pg_catalog.pg_publication_namespace n
              join pg_catalog.pg_class c on c.relnamespace operator(pg_catalog.=) n.pnnspid
             where c.oid operator(pg_catalog.=) any ($1))' into in_schema using members;
  end if;
  select p.pubname::pg_catalog.text into other
    from pg_catalog.pg_publication p
   where p.pubname operator(pg_catalog.<>) {name} and (p.pubupdate or p.pubdelete)
     and (({forbids}) and (p.puballtables or p.oid operator(pg_catalog.=) any (in_schema))
          or exists (select from pg_catalog.pg_publication_rel r
                      where r.prpubid operator(pg_catalog.=) p.oid
                        and r.prrelid operator(pg_catalog.=) any (members)
                        and (({forbids}) or ({entry}))))
   limit 1;
  if other is not null then
    raise sqlstate 'WS001' using message = pg_catalog.concat(
      'publication ', pg_catalog.quote_ident(other), ' has the table since: print this SQL again');
  end if;
end
{quote}
