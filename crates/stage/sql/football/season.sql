-- A season for schema.sql. Privileges: owner of its tables. Versions: 14 and later.
--   call generate_season();                            a small one, always the same
--   call generate_season(seed => 0.7, club_count => 18, matchday_count => 34, model_count => 30);

-- A name as it stands in a link.
create function slugify(name text) returns text language sql immutable as $$
    select trim('-' from regexp_replace(
        translate(lower(name), 'áäåçéëíñóöøúü', 'aaaceeinooouu'), '[^a-z0-9]+', '-', 'g'))
$$;

-- The clubs of a competition, in the order of the draw. Some names are awkward on purpose: data
-- holds glob characters, quotes and accents sooner or later.
create function clubs_of(competition text, club_count integer)
returns table (place integer, club text) language sql stable as $$
    with known as (
        select coalesce(case competition
            when 'eliteserien' then array[
                'Bodø/Glimt [W]*', 'Bodø/Glimt Women', 'Rosenborg BK', 'Ham-Kam\Briskeby',
                'Molde FK', 'Strømsgodset IF', 'SK Brann', 'Viking FK', 'Tromsø IL', 'Vålerenga']
            when 'bundesliga' then array[
                '1. FC Köln', '1. FC Heidenheim 1846', 'Borussia Mönchengladbach', 'FC St. Pauli',
                'Bayern München', 'TSG 1899 Hoffenheim', 'Bayer 04 Leverkusen', 'VfB Stuttgart',
                'Hamburger SV', 'SV Werder Bremen']
            when 'premier-league' then array[
                'Brighton & Hove Albion', 'Nott''m Forest', 'Wolverhampton Wanderers', 'Who? FC',
                'Arsenal', 'Liverpool', 'AFC Bournemouth', 'Crystal Palace', 'Everton', 'Fulham']
            when 'la-liga' then array[
                'Atlético Madrid', 'Athletic Club*', 'Deportivo Alavés', 'Real Betis "Balompié"',
                'RCD Espanyol', 'CA Osasuna', 'Real Sociedad', 'Girona FC', 'Sevilla FC', 'Getafe']
            when 'champions-cup' then array[
                'Bodø/Glimt [W]*', 'Atlético Madrid', 'Bayern München', 'Arsenal',
                'Inter (Milano)', 'Club Brugge {KV}', 'Benfica', 'Ajax', 'Celtic', 'Galatasaray']
        end, '{}') as names
    )
    select place, coalesce(names[place],
        format('%s %s', lpad(place::text, 4, '0'), initcap(replace(competition, '-', ' '))))
    from known, generate_series(1, club_count) place
$$;

-- Fills every table. Counts beyond the known names are made up; an odd club count is rounded up.
-- A round robin of n clubs has n - 1 matchdays, and as many again with home and away exchanged;
-- after that it starts over.
create procedure generate_season(
    seed double precision default 0.4,
    competition_count integer default 5,
    club_count integer default 8,
    matchday_count integer default 6,
    model_count integer default 6
) language plpgsql as $$
declare
    rounds integer := club_count + club_count % 2 - 1;
begin
    perform setseed(seed);

    insert into competitions (id, name, country)
    select id, name, country from (
        select place, id, name, country from (values
            (1, 'eliteserien', 'Eliteserien', 'Norway'), (2, 'bundesliga', 'Bundesliga', 'Germany'),
            (3, 'premier-league', 'Premier League', 'England'), (4, 'la-liga', 'La Liga', 'Spain'),
            (5, 'champions-cup', 'Champions Cup', 'Europe')) known (place, id, name, country)
        union all
        select place, format('league-%s', lpad(place::text, 4, '0')),
               format('League %s', lpad(place::text, 4, '0')), 'Utopia'
        from generate_series(6, competition_count) place
    ) all_competitions where place <= competition_count order by place;

    insert into models (name, provider)
    select format('%s-%s', family[1 + (n - 1) % 6], lpad(n::text, 3, '0')), maker[1 + (n - 1) % 6]
    from generate_series(1, model_count) n, (values (
        array['atlas', 'birch', 'comet', 'delta', 'ember', 'fjord'],
        array['Aurora Labs', 'Birchwood', 'Cometary', 'Delta AI', 'Emberline', 'Fjordworks']
    )) names (family, maker);

    insert into matches (competition_id, matchday, slug, home_team, away_team, kickoff, venue)
    select competition, matchday,
           format('%s-md%s-%s-%s', competition, matchday, slugify(home), slugify(away)),
           home, away,
           timestamptz '2026-08-01 15:00+00' + (matchday - 1) * interval '7 days'
               + floor(random() * 12) * interval '30 minutes',
           home || ' Stadium'
    from (
        select c.id as competition, day as matchday,
               case when swap then b.club else a.club end as home,
               case when swap then a.club else b.club end as away
        from competitions c
        cross join generate_series(1, matchday_count) day
        cross join generate_series(0, (rounds - 1) / 2) pair
        cross join lateral (select
            1 + (day - 1 + pair) % rounds as first,
            case pair when 0 then rounds + 1
                      else 1 + (day - 1 - pair + rounds * (1 + pair / rounds)) % rounds
            end as second,
            ((day - 1) / rounds + pair + case pair when 0 then day else 0 end) % 2 = 1 as swap) p
        join lateral clubs_of(c.id, rounds + 1) a on a.place = p.first
        join lateral clubs_of(c.id, rounds + 1) b on b.place = p.second
        order by day, c.id, pair
    ) fixtures;

    insert into predictions (match_id, model_id, predicted_home, predicted_away, reasoning)
    select m.id, o.id, floor(random() * random() * 6), floor(random() * random() * 5),
           format('%s are at home in %s.', m.home_team, m.venue)
    from matches m cross join models o order by m.id, o.id;
end $$;
