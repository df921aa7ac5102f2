-- The state in which every session of walsweep begins, whatever was set for the role, the database
-- or both; lookups alone see the role's own view again (sql/as_role.sql). This is the one list.
-- Privileges: none. Versions: 14 to 18; a setting that the server does not know is left out.
-- {backend} is the process that has to answer: behind a pooler that lends one backend to several
-- sessions, the settings would become those of the application. No row: another one answered.
-- As it runs before the search_path is known, every name and operator in it is qualified.
--
-- Gone through were all settings of context `user` and `superuser` (pg_settings, 14 and 18). Left
-- as they are: `role`, which is who we are and not what our SQL means; what only a superuser may
-- set (`session_replication_role`, `event_triggers`, `lc_messages`: we write no rows, and errors
-- are known by SQLSTATE); `synchronous_commit`, but for what `setup` changes
-- (sql/setup/waits.sql); `lc_monetary`, as README.md says; `default_tablespace`,
-- `check_function_bodies`,
-- `default_table_access_method` and `default_toast_compression`, as we make no tables;
-- `row_security`, as catalogs have none; `xmloption` and `xmlbinary`, which change no value that is
-- printed; `client_encoding`, which the login asks for; keepalives and `tcp_user_timeout`, which
-- are about the network; costs and methods of the planner, memory, statistics, vacuum and what is
-- logged, which change how long an answer takes and not the answer.
select pg_catalog.set_config(wanted.name, wanted.setting, false)
  from (values
    -- Limits: each would end a session or a question of ours for good, that of transactions also
    -- the decoding of a large one. Ours are kept by the client, or set where they are needed.
    ('statement_timeout', '0'),
    ('lock_timeout', '0'),
    ('transaction_timeout', '0'),
    ('idle_in_transaction_session_timeout', '0'),
    ('idle_session_timeout', '0'),
    -- A refused statement is an answer, not the end of the session.
    ('exit_on_error', 'off'),
    -- A standby knows no serializable transactions; a deferrable one waits for those of others.
    ('default_transaction_isolation', 'read committed'),
    ('default_transaction_read_only', 'off'),
    ('default_transaction_deferrable', 'off'),
    -- Whose functions, operators and types our names mean (CVE-2018-1058). Temporary objects come
    -- last: they are searched first where the path does not say.
    ('search_path', 'pg_catalog, pg_temp'),
    -- How our texts are read.
    ('standard_conforming_strings', 'on'),
    ('transform_null_equals', 'off'),
    ('array_nulls', 'on'),
    -- How names are printed that we compare.
    ('quote_all_identifiers', 'off'),
    -- How values are printed, and so the keys that are made of them. The first three are what
    -- Postgres's own subscriber asks for (libpqwalreceiver.c).
    ('datestyle', 'ISO, MDY'),
    ('intervalstyle', 'postgres'),
    ('extra_float_digits', '3'),
    ('timezone', 'UTC'),
    ('bytea_output', 'hex'),
    -- Warnings must come through: one of them is an error to us (`skipped_publication`).
    ('client_min_messages', 'warning'),
    -- A question about the catalog must neither be compiled for seconds nor take the workers of
    -- the application's own.
    ('jit', 'off'),
    ('max_parallel_workers_per_gather', '0'),
    -- What a transaction may hold in the server's memory before it is sent while it still runs; the
    -- server's default is 64 MB. Smaller than this, transactions are cut up that arrive whole in no
    -- time; larger, the sender lags behind by as much at the commit.
    ('logical_decoding_work_mem', '1MB'),
    -- Would send or write every change of a transaction on its own.
    ('debug_logical_replication_streaming', 'buffered')
  ) as wanted (name, setting)
 where pg_catalog.current_setting(wanted.name, true) is not null
   and pg_catalog.pg_backend_pid() operator(pg_catalog.=) {backend}
