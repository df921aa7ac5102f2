-- Around a GRANT: where whoever runs it may not grant that, Postgres answers with a mere warning,
-- and this fails.
-- Privileges: those of the statement. Versions: 14 to 18. {has} tells whether {role} has {right} on
-- {object}.
do {quote}
begin
  {statement};
  if not pg_catalog.{has}({role}, {object}, {right}) then
    raise insufficient_privilege using
      message = 'no privileges were granted: the owner may grant them, or a superuser';
  end if;
end
{quote}
