//! The answer to `explain`: `{"v":1,"steps":[…],"dest":…}`, one rule a line.

use super::answer::{Answer, Short};
use super::subject::Explained;
use crate::policy::explain::{Outcome, Step};
use std::fmt;

/// A rule after the other, the last being that which decides, or `option default`.
pub(super) fn answer(explained: &Explained) -> Answer {
    Answer::object(|json| {
        json.text_member("config", explained.config.display())?;
        json.key("steps")?;
        json.begin_array()?;
        for (step, outbound) in &explained.steps {
            let Step { rule, name, outcome, .. } = step;
            json.begin_object()?;
            json.optional_number_member("rule", rule.map(u64::from))?;
            json.optional_text_member("name", name.as_deref().map(Short))?;
            json.text_member("outbound", Short(&outbound.name))?;
            json.optional_text_member("state", outbound.state)?;
            let (word, kinds) = match outcome {
                Outcome::Matches => ("matches", &[][..]),
                Outcome::No(kind) => ("no", std::slice::from_ref(kind)),
                Outcome::Depends(kinds) => ("depends", &kinds[..]),
            };
            json.text_member("outcome", word)?;
            json.key("kinds")?;
            json.begin_array()?;
            kinds.iter().try_for_each(|kind| json.text(kind))?;
            json.end_array()?;
            json.end_object()?;
        }
        json.end_array()?;
        let result: fmt::Result = json.flag_member("running", true);
        result
    })
}
