-- A number that is another one when the rows of a question are other ones. Privileges: those of the
-- question. Versions: 14 and later.
-- A hash of 64 bits, and none of OpenSSL's, which may be forbidden; the text's bytes count alone.
select coalesce(sum(hashtextextended(answer::text collate "C", 0)), 0)::text, count(*)
  from (
{question}
       ) as answer
