-- Writes every *.hex of this folder: real pgoutput, one message a line. Run in an empty database of
-- a throwaway server with wal_level = logical, as superuser, from the root of the repository:
--   psql -XAtq -v ON_ERROR_STOP=1 -v proto=2 -v streaming=on -f tests/golden/wal/make.sql
-- and then rewrite the readable twins with UPDATE_GOLDEN=1 cargo test --lib golden.
-- Object ids, transaction ids, positions and times differ from run to run: the files are captured
-- once, from PostgreSQL 15.18, and again only when a case is added. streamed_parallel.hex is the
-- streamed.hex of PostgreSQL 18 with proto=4 and streaming=parallel.

set synchronous_commit = on;
create schema shop;
create type shop.mood as enum ('sad', 'ok');
create table shop.customer (id int primary key, name text, mail text, joined timestamptz);
create table shop.customer_full (id int primary key, name text, note text);
alter table shop.customer_full replica identity full;
create table shop.customer_index (id int primary key, mail text not null unique, name text);
alter table shop.customer_index replica identity using index customer_index_mail_key;
create table shop.log (line text);
create table shop.document (id int primary key, title text, body text);
alter table shop.document alter body set storage external;
create table shop.document_full (id int primary key, title text, body text);
alter table shop.document_full alter body set storage external;
alter table shop.document_full replica identity full;
create table shop.orders (id int primary key);
create table shop.order_line (id int primary key, order_id int references shop.orders);
create table shop.feeling (id int primary key, mood shop.mood, price numeric(10, 2));
create table shop.view_row (id int primary key, definition pg_catalog.pg_tables);
create table "Mixed Case"("Id" int primary key, "Straße" text);
create table shop.event (id int, day date, primary key (id, day)) partition by range (day);
create table shop.event_2026 partition of shop.event
  for values from ('2026-01-01') to ('2027-01-01');
create table shop.narrow (id int primary key, secret text, dropped int, name text);
alter table shop.narrow drop column dropped;
create publication golden for table shop.customer, shop.customer_full, shop.customer_index,
  shop.log, shop.document, shop.document_full, shop.orders, shop.order_line, shop.feeling,
  shop.view_row, "Mixed Case", shop.event, shop.narrow (id, name);
insert into shop.customer values (1, 'Ada', 'ada@example.org', '2026-01-02 03:04:05+00'),
  (2, 'Bob', null, null);
insert into shop.customer_full values (1, 'Ada', null), (2, 'Bob', 'late');
insert into shop.customer_index values (1, 'ada@example.org', 'Ada');
insert into shop.document values (1, 'old', repeat('body ', 2000));
insert into shop.document_full values (1, 'old', repeat('body ', 20));
insert into shop.document_full values (2, 'old', repeat('x', 2100));
insert into shop.orders values (1);
insert into shop.order_line values (1, 1);
select pg_replication_origin_create('elsewhere') \g /dev/null
select pg_create_logical_replication_slot('golden', 'pgoutput') \g /dev/null

prepare take as select encode(data, 'hex') from pg_logical_slot_get_binary_changes('golden', null,
  null, 'proto_version', '1', 'publication_names', 'golden', 'messages', 'true');
prepare take_binary as select encode(data, 'hex') from pg_logical_slot_get_binary_changes('golden',
  null, null, 'proto_version', '1', 'publication_names', 'golden', 'binary', 'true');

insert into shop.customer values (3, 'Zoë', '', null), (4, null, E'tab\tand\nline', 'infinity');
\o tests/golden/wal/insert.hex
execute take;
\o

update shop.customer set name = 'Ada L.' where id = 1;
\o tests/golden/wal/update_default_identity.hex
execute take;
\o

update shop.customer set id = 10 where id = 1;
\o tests/golden/wal/update_primary_key.hex
execute take;
\o

update shop.customer_full set note = 'early' where id = 1;
\o tests/golden/wal/update_full_identity.hex
execute take;
\o

update shop.customer_index set mail = 'ada@example.com' where id = 1;
\o tests/golden/wal/update_index_identity.hex
execute take;
\o

insert into shop.log values ('no identity at all');
\o tests/golden/wal/insert_without_identity.hex
execute take;
\o

delete from shop.customer where id = 2;
\o tests/golden/wal/delete_default_identity.hex
execute take;
\o

delete from shop.customer_full where id = 2;
\o tests/golden/wal/delete_full_identity.hex
execute take;
\o

update shop.document set title = 'new' where id = 1;
\o tests/golden/wal/unchanged_toast.hex
execute take;
\o

update shop.document_full set title = 'new' where id = 2;
\o tests/golden/wal/unchanged_toast_full_identity.hex
execute take;
\o

truncate shop.orders restart identity cascade;
\o tests/golden/wal/truncate_cascade.hex
execute take;
\o

insert into shop.feeling values (1, 'ok', 12.50);
\o tests/golden/wal/custom_type.hex
execute take;
\o

insert into shop.view_row
  select 1, t from pg_catalog.pg_tables t where t.tablename = 'pg_class';
\o tests/golden/wal/type_in_pg_catalog.hex
execute take;
\o

begin;
select pg_logical_emit_message(false, 'walsweep.before', 'written at once') \g /dev/null
select pg_logical_emit_message(true, 'walsweep.inside', '\x00ff'::bytea) \g /dev/null
commit;
\o tests/golden/wal/logical_message.hex
execute take;
\o

select pg_replication_origin_session_setup('elsewhere') \g /dev/null
begin;
select pg_replication_origin_xact_setup('16/B374D848', '2026-01-02 03:04:05+00') \g /dev/null
insert into shop.orders values (2);
commit;
select pg_replication_origin_session_reset() \g /dev/null
\o tests/golden/wal/origin.hex
execute take;
\o

insert into "Mixed Case" values (1, 'Ω');
\o tests/golden/wal/quoted_names.hex
execute take;
\o

insert into shop.event values (1, '2026-02-03');
\o tests/golden/wal/partition_leaf.hex
execute take;
\o

insert into shop.narrow values (1, 'not published', 'Ada');
\o tests/golden/wal/column_list.hex
execute take;
\o

begin;
insert into shop.orders values (3);
savepoint undone;
insert into shop.orders values (4);
rollback to undone;
savepoint kept;
insert into shop.orders values (5);
commit;
\o tests/golden/wal/subtransactions.hex
execute take;
\o

begin;
insert into shop.orders values (6);
alter table shop.orders add column note text;
insert into shop.orders values (7, 'seven');
commit;
\o tests/golden/wal/altered_inside.hex
execute take;
\o

insert into shop.customer values (5, 'Eve', null, '2026-01-02 03:04:05+00');
\o tests/golden/wal/binary_values.hex
execute take_binary;
\o

-- Transactions that outgrow 64 kB of memory are sent in blocks: nine of these rows, of which only
-- two columns are published.
alter table shop.narrow alter secret set storage plain;
set logical_decoding_work_mem = '64kB';
prepare take_streamed as select encode(data, 'hex') from pg_logical_slot_get_binary_changes(
  'golden', null, null, 'proto_version', :'proto', 'publication_names', 'golden', 'messages',
  'true', 'streaming', :'streaming');
prepare rows(int, int) as insert into shop.narrow
  select id, repeat('x', 8000), 'row ' || id from generate_series($1, $2) id;

begin;
execute rows (11, 19);
savepoint kept;
execute rows (21, 29);
insert into shop.feeling values (21, 'sad', 1);
select pg_logical_emit_message(true, 'walsweep.inside', 'a block') \g /dev/null
truncate shop.order_line;
savepoint undone;
execute rows (31, 39);
rollback to undone;
delete from shop.narrow where id = 21;
update shop.narrow set name = 'new' where id = 22;
commit;
\o tests/golden/wal/streamed.hex
execute take_streamed;
\o

-- The transaction before is sent once more, and taken back: that it is confirmed shows at its end.
begin;
execute rows (41, 49);
rollback;
\o tests/golden/wal/streamed_rolled_back.hex
execute take_streamed;
\o

select pg_drop_replication_slot('golden') \g /dev/null
