//! Checking a set against what its writers were told, in the manner of Jepsen's set-full.
//!
//! Each element is added once. What was acknowledged must be there in the end, what is unknown may
//! be there, what was never tried or was refused must not be there, and nothing may be there twice.

use std::collections::{BTreeMap, BTreeSet};

use super::Outcome;

/// What the writers of a set were told.
#[derive(Debug, Clone, Default)]
pub struct SetHistory {
    elements: BTreeMap<String, Outcome>,
}

impl SetHistory {
    /// Notes the outcome of an element. A retry with the same write id may replace `Unknown`; it
    /// never takes back an acknowledgement.
    pub fn note(&mut self, element: impl Into<String>, outcome: Outcome) {
        let known = self.elements.entry(element.into()).or_insert(outcome);
        if *known != Outcome::Acknowledged {
            *known = outcome;
        }
    }

    /// Adds another writer's history.
    pub fn merge(&mut self, other: Self) {
        for (element, outcome) in other.elements {
            self.note(element, outcome);
        }
    }

    /// How many elements have this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.elements.values().filter(|o| **o == outcome).count()
    }

    /// The elements that must be there.
    pub fn acknowledged(&self) -> impl Iterator<Item = &str> {
        self.elements.iter().filter(|(_, o)| **o == Outcome::Acknowledged).map(|(e, _)| e.as_str())
    }

    /// Everything wrong with the final state `found`; empty when it agrees with the history.
    pub fn check<'a>(&self, found: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut seen = BTreeSet::new();
        for element in found {
            if !seen.insert(element) {
                wrong.push(format!("{element} is there twice"));
            }
            match self.elements.get(element) {
                Some(Outcome::Acknowledged | Outcome::Unknown) => {}
                Some(Outcome::Refused) => wrong.push(format!("{element} was refused and is there")),
                None => wrong.push(format!("{element} was never written and is there")),
            }
        }
        let lost = self.acknowledged().filter(|e| !seen.contains(e));
        wrong.extend(lost.map(|e| format!("{e} was acknowledged and is lost")));
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> SetHistory {
        let mut history = SetHistory::default();
        history.note("a", Outcome::Acknowledged);
        history.note("u", Outcome::Unknown);
        history.note("r", Outcome::Refused);
        history
    }

    #[test]
    fn unknown_elements_may_be_there_or_not() {
        assert_eq!(history().check(["a"]), Vec::<String>::new());
        assert_eq!(history().check(["a", "u"]), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_disagreement_is_found() {
        assert_eq!(history().check(["u"]), ["a was acknowledged and is lost"]);
        assert_eq!(history().check(["a", "r"]), ["r was refused and is there"]);
        assert_eq!(history().check(["a", "x"]), ["x was never written and is there"]);
        assert_eq!(history().check(["a", "a"]), ["a is there twice"]);
    }

    #[test]
    fn a_retry_settles_what_was_unknown_and_takes_no_acknowledgement_back() {
        let mut history = history();
        history.note("u", Outcome::Acknowledged);
        history.note("a", Outcome::Unknown);
        assert_eq!(history.count(Outcome::Acknowledged), 2);
        assert_eq!(history.check(["a"]), ["u was acknowledged and is lost"]);
    }
}
