-- Around a statement that gives a table another replica identity: it is undone if another
-- publication has the table in a way that goes with the old one alone, for then every UPDATE and
-- DELETE of the application would fail. That was asked before, but whoever made the publication may
-- have been faster than this, which waited for its lock. So it is asked again under the lock: who
-- publishes the table by name waits for that.
-- Privileges: those of the statement. Versions: 14 to 18. {relation} is the table, {name} is
-- walsweep's publication, {forbids} what of another one, p, forbids it; {entry} the same of its
-- entry for the table, r.
do {quote}
declare
  relation constant pg_catalog.oid := {relation}::pg_catalog.regclass;
  members constant pg_catalog.oid[] := array(
    select a::pg_catalog.oid from pg_catalog.pg_partition_ancestors(relation) as a
     union select relation);
  in_schema pg_catalog.oid[] := array[]::pg_catalog.oid[];
  other pg_catalog.text;
begin
  {statement};
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
