-- What the site's worker and its editors do, each one transaction when called on its own.
-- Privileges: owner of the tables of schema.sql. Versions: 14 and later.

-- Sets the result and scores every prediction of the match: 2 points for the tendency, 1 more for
-- the goal difference, 1 more for the exact result.
create procedure settle_match(match bigint, home integer, away integer) language plpgsql as $$
begin
    update matches set status = 'finished', home_goals = home, away_goals = away,
        settled_at = clock_timestamp()
    where id = match;
    if not found then
        raise exception 'no such match' using errcode = 'no_data_found';
    end if;
    update predictions set status = 'scored',
        tendency_points = tendency, difference_points = difference, exact_points = exact,
        total_points = tendency + difference + exact
    from (
        select id as scored_id,
            (case when sign(predicted_home - predicted_away) = sign(home - away)
             then 2 else 0 end)::smallint as tendency,
            (case when predicted_home - predicted_away = home - away
             then 1 else 0 end)::smallint as difference,
            (case when predicted_home = home and predicted_away = away
             then 1 else 0 end)::smallint as exact
        from predictions where match_id = match
    ) points
    where id = scored_id;
end $$;

-- Gives a club another name, in every match that it plays.
create procedure rename_club(before text, after text) language sql as $$
    update matches set home_team = case home_team when before then after else home_team end,
        away_team = case away_team when before then after else away_team end
    where before in (home_team, away_team);
$$;

-- Takes a model off the site.
create procedure disable_model(model text) language sql as $$
    update models set enabled = false where name = model;
$$;

-- Notes where a match is played, which no cached page shows.
create procedure note_venue(match bigint, place text) language sql as $$
    update matches set venue = place where id = match;
$$;

-- Removes a match with its predictions.
create procedure remove_match(match bigint) language sql as $$
    delete from matches where id = match;
$$;
