//! Why there is no session with Redis, or no user who may do anything, and what lets one in.

use redis::RedisError;

use super::redis::Needs;
use super::{Code, Finding};
use crate::config::Target;
use crate::sweep::redis::connect::{self, ConnectError};
use crate::sweep::{Kind, LOGIN_HINT};

/// Why there is no connection: a login that was refused, or no answer.
#[must_use]
pub fn unreachable(target: &Target, error: &ConnectError) -> Finding {
    login_refused(target, error).unwrap_or_else(|| {
        let hint = error.hint().unwrap_or("see that Redis runs, and that `redis.url` names it");
        of_target(target, Finding::error(Code::RedisUnreachable, error.to_string()).hint(hint))
    })
}

/// That Redis does not let the user of the configuration in, if a person has to change something
/// about that.
#[must_use]
pub fn login_refused(target: &Target, error: &ConnectError) -> Option<Finding> {
    let finding = of_target(target, Finding::error(Code::RedisLogin, error.refusal()?));
    Some(match error {
        ConnectError::Redis { error, .. } if error.kind() == Kind::NoPerm => {
            finding.hint(Needs::of(target).cure(false, false))
        }
        // Redis says the same of a wrong password, of a user that is not there, and of one that is
        // off.
        ConnectError::Redis { error, .. } if error.kind() == Kind::Auth => {
            let needs = Needs::of(target);
            let user = &needs.user;
            // The default user is always there.
            if user == "default" {
                return Some(finding.hint(LOGIN_HINT));
            }
            let turns_on = format!(
                "if it is not there, {} in `redis-cli` makes it{}; if the user is off, `acl \
                 setuser {user} on` turns it on",
                needs.cure_anew(),
                needs.inside.members()
            );
            finding.hint(format!("{LOGIN_HINT}; {turns_on}"))
        }
        error => match error.hint() {
            Some(hint) => finding.hint(hint),
            None => finding,
        },
    })
}

/// The finding with the target that it is of, where there are several.
pub(super) fn of_target(Target { redis, .. }: &Target, finding: Finding) -> Finding {
    if redis.is_alone {
        return finding;
    }
    Finding { message: format!("{}: {}", redis.title(), finding.message), ..finding }
}

/// Says how to let the user of the configuration in, or how to give him every right, if Redis
/// answers and he lacks one.
pub async fn lets_redis(target: &Target) -> Option<String> {
    let found = match connect::connect(&target.redis).await {
        Ok(mut connection) => super::redis(target, &mut connection).await,
        Err(error) => vec![login_refused(target, &error)?],
    };
    let rights = [Code::RedisPermission, Code::RedisKeyPermission, Code::RedisLogin];
    found.into_iter().find(|finding| rights.contains(&finding.code))?.hint
}

/// Why PING has no answer, where it is no right that is missing.
pub(super) fn unanswered(error: &RedisError) -> Finding {
    if error.code() != Some("NOAUTH") {
        // It may refuse even PING, where it takes no writes.
        let class = connect::classify(error);
        let finding = Finding::error(Code::RedisUnreachable, format!("no answer to PING: {class}"));
        return match class.hint() {
            Some(hint) => finding.hint(hint),
            None => finding,
        };
    }
    let hint = "let `redis.password_file` name a file with the password and nothing else, or \
                `redis.password_command` a program that prints it; if it is that of a user of the \
                ACL, name him too: `redis://user@host`";
    Finding::error(Code::RedisLogin, "redis wants a password, and there is none").hint(hint)
}
