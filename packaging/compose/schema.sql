-- What the container of compose.yaml makes in its database, as a superuser, when it is new.
-- Privileges: a superuser. Versions: all.
create table users (
    id int primary key,
    team_id int not null,
    name text not null
);
insert into users values (1, 2, 'old'), (2, 2, 'other');
-- The role with which walsweep logs in: its password is the superuser's here.
\getenv password POSTGRES_PASSWORD
create role walsweep login replication password :'password';
