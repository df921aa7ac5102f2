-- Every key that the site has cached once all its pages have been looked at: the topic that a key's
-- value is computed from, the subject of that topic, the key. Privileges: select on the tables of
-- schema.sql. Versions: 14 and later.
with clubs as (
    select home_team as club from matches union select away_team from matches
    union select 'Bodø/Glimt Kvinner'
)
select 'predictions' as topic, id::text as subject, 'db:predictions:' || id as key from matches
union all
select 'roundup', id::text, key
from matches, lateral (values ('roundup:' || id), ('roundup:slug:' || slug)) keys (key)
union all
select 'club', club, format('stats:club:season:%s:club:%s:%s', season, club, part)
from clubs, unnest(array['all', '2026']) season, unnest(array['form', 'models']) part
union all
select 'competition', id, format('stats:competition:season:%s:comp:%s:%s', season, id, part)
from competitions, unnest(array['all', '2026']) season, unnest(array['goals', 'models']) part
union all
select 'leaderboard', kind, format('%s:leaderboard:comp:%s:provider:%s:last:%s:page:%s',
    kind, coalesce(id, 'all'), coalesce(provider, 'all'), period, page)
from unnest(array['db', 'stats']) kind,
    (select id from competitions union select null) competition,
    (select provider from models union select null) provider,
    unnest(array[7, 30, 90]) period, generate_series(1, 2) page
union all
select 'model', '', key
from models, lateral (values (format('db:model:%s:stats', id)),
    (format('stats:model:%s:by-competition', id))) keys (key)
union all
select 'overall', '', key
from unnest(array['db:stats:overall', 'db:models:top-performing', 'stats:overall:week',
    'stats:overall:season']) key
union all
select 'models', '', key from unnest(array['db:models:active', 'db:models:count:active']) key
union all
select 'other', '', 'session:' || md5(n::text) from generate_series(1, 5000) n
