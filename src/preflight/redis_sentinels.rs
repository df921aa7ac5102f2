//! The Sentinels of a target: whether each answers, and whether all of them are listed.

use super::redis_login::of_target;
use super::{Code, Fact, Finding};
use crate::config::Target;
use crate::sweep::redis::sentinel::{Survey, survey};

/// Looks at the Sentinels of a target, if it has some, beside the server that they name.
pub async fn sentinels(target: &Target) -> (Vec<Finding>, Option<Fact>) {
    let Some(survey) = survey(&target.redis).await else { return (Vec::new(), None) };
    let findings = judge(&survey).into_iter().map(|finding| of_target(target, finding));
    (findings.collect(), fact(&survey))
}

fn judge(survey: &Survey) -> Vec<Finding> {
    let Survey { service, agreed, named, listed, known, said, .. } = survey;
    let mut findings = Vec::new();
    if agreed < named {
        let message = format!(
            "{} of {listed} Sentinels name another primary of `{service}`: {said}",
            named - agreed
        );
        let hint = "after a failover they hear of it within seconds; else one of them is of \
                    another service of the same name: take it out of `redis.sentinels`";
        findings.push(Finding::warning(Code::RedisSentinels, message).hint(hint));
    }
    if !survey.epochs {
        let message =
            format!("some Sentinels do not tell which of their answers for `{service}` is later");
        let hint = "give the user of each `+sentinel|master`: without it votes are counted, and \
                    those who have not heard of a failover may have most";
        findings.push(Finding::warning(Code::RedisSentinels, message).hint(hint));
    }
    if named < listed {
        let message =
            format!("{named} of {listed} Sentinels name a primary of `{service}`: {said}");
        let hint = "bring the others back, or take those that are gone for good out of \
                    `redis.sentinels`: while half of them or less answer, nothing is confirmed";
        findings.push(Finding::warning(Code::RedisSentinels, message).hint(hint));
    }
    if known > listed {
        let message = format!(
            "`redis.sentinels` lists {listed} of the {known} Sentinels of `{service}`: those that \
             are not listed may know of a failover before the others do"
        );
        findings.push(Finding::warning(Code::RedisSentinels, message).hint("list all of them"));
    }
    findings
}

fn fact(survey: &Survey) -> Option<Fact> {
    let Survey { service, primary, agreed, listed, .. } = survey;
    let primary = primary.as_ref()?;
    let text =
        format!("`{primary}` is the primary of `{service}`, as {agreed} of {listed} Sentinels say");
    Some(Fact::new("redis", text))
}

#[cfg(test)]
mod tests {
    use super::{fact, judge};
    use crate::sweep::redis::sentinel::Survey;

    #[test]
    fn who_does_not_answer_and_who_is_not_listed_is_told() {
        let survey = |agreed, listed, known| Survey {
            service: "cache".to_owned(),
            primary: Some("h:1".to_owned()),
            agreed,
            named: agreed,
            epochs: true,
            listed,
            known,
            said: "`s:2` does not answer".to_owned(),
        };
        for (survey, told) in [
            (survey(3, 3, 3), &[][..]),
            (survey(2, 3, 3), &["2 of 3 Sentinels name"]),
            (survey(1, 1, 3), &["lists 1 of the 3"]),
            (survey(1, 2, 3), &["1 of 2 Sentinels name", "lists 2 of the 3"]),
        ] {
            let found: Vec<String> = judge(&survey).into_iter().map(|one| one.message).collect();
            assert_eq!(found.len(), told.len(), "{found:?}");
            assert!(found.iter().zip(told).all(|(found, told)| found.contains(told)), "{found:?}");
        }
        let lonely = Survey { named: 3, ..survey(1, 3, 3) };
        assert!(judge(&lonely)[0].message.starts_with("2 of 3 Sentinels name another primary"));
        let blind = Survey { epochs: false, ..survey(3, 3, 3) };
        assert!(judge(&blind)[0].hint.as_ref().unwrap().contains("+sentinel|master"));
        let text = "`h:1` is the primary of `cache`, as 2 of 3 Sentinels say";
        assert_eq!(fact(&survey(2, 3, 3)).unwrap().text, text);
        assert_eq!(fact(&Survey { primary: None, ..survey(0, 3, 3) }), None);
    }
}
