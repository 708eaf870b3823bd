//! Checks a set against the answers that its writers got, like Jepsen's set-full checker.
//!
//! Each element is added once. In the end, acknowledged elements must exist, elements with an
//! unknown outcome may exist, elements that were refused or never written must not exist, and no
//! element may exist twice.

use std::collections::{BTreeMap, BTreeSet};

use super::outcome::Outcome;

/// The outcomes of all writes to a set.
#[derive(Debug, Clone, Default)]
pub struct SetHistory {
    elements: BTreeMap<String, Outcome>,
}

impl SetHistory {
    /// Records the outcome of an element. A retry with the same write id may settle `Unknown`; it
    /// never revokes an acknowledgement.
    pub fn record(&mut self, element: impl Into<String>, outcome: Outcome) {
        let known = self.elements.entry(element.into()).or_insert(outcome);
        if *known != Outcome::Acknowledged {
            *known = outcome;
        }
    }

    /// Adds the history of another writer.
    pub fn merge(&mut self, other: Self) {
        for (element, outcome) in other.elements {
            self.record(element, outcome);
        }
    }

    /// Number of elements with this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.elements.values().filter(|o| **o == outcome).count()
    }

    /// The elements that must exist.
    pub fn acknowledged(&self) -> impl Iterator<Item = &str> {
        self.elements.iter().filter(|(_, o)| **o == Outcome::Acknowledged).map(|(e, _)| e.as_str())
    }

    /// All contradictions between the final state `found` and the history; empty when there are
    /// none.
    pub fn check<'a>(&self, found: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut violations = Vec::new();
        let mut seen = BTreeSet::new();
        for element in found {
            if !seen.insert(element) {
                violations.push(format!("{element} exists twice"));
            }
            match self.elements.get(element) {
                Some(Outcome::Acknowledged | Outcome::Unknown) => {}
                Some(Outcome::Refused) => {
                    violations.push(format!("{element} was refused and exists"))
                }
                None => violations.push(format!("{element} was never written and exists")),
            }
        }
        let lost = self.acknowledged().filter(|e| !seen.contains(e));
        violations.extend(lost.map(|e| format!("{e} was acknowledged and is lost")));
        violations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> SetHistory {
        let mut history = SetHistory::default();
        history.record("a", Outcome::Acknowledged);
        history.record("u", Outcome::Unknown);
        history.record("r", Outcome::Refused);
        history
    }

    #[test]
    fn elements_with_an_unknown_outcome_may_exist_or_not() {
        assert_eq!(history().check(["a"]), Vec::<String>::new());
        assert_eq!(history().check(["a", "u"]), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_contradiction_is_found() {
        assert_eq!(history().check(["u"]), ["a was acknowledged and is lost"]);
        assert_eq!(history().check(["a", "r"]), ["r was refused and exists"]);
        assert_eq!(history().check(["a", "x"]), ["x was never written and exists"]);
        assert_eq!(history().check(["a", "a"]), ["a exists twice"]);
    }

    #[test]
    fn a_retry_settles_an_unknown_outcome_and_revokes_no_acknowledgement() {
        let mut history = history();
        history.record("u", Outcome::Acknowledged);
        history.record("a", Outcome::Unknown);
        assert_eq!(history.count(Outcome::Acknowledged), 2);
        assert_eq!(history.check(["a"]), ["u was acknowledged and is lost"]);
    }
}
