-- Which of these transactions are committed, in the order of the question. For keys of a large
-- transaction that readers see already while it is still being sent.
-- Privileges: none. Versions: 14 and later (pg_xact_status(xid8) since 13).
-- Asked only for transactions that a snapshot showed as ended: none of them runs any more. NULL, of
-- one so old that its status is gone, is no.
select coalesce(pg_xact_status(asked.xid::text::xid8) = 'committed', false)
from unnest($1::bigint[]) with ordinality as asked (xid, place)
order by place
