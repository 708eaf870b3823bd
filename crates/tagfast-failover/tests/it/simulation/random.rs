//! Random schedules under the real rules.

use proptest::prelude::*;

use super::check::check;
use super::cluster::{Op, Request};
use super::rules::REAL;
use super::step::{Api, Db, Step};
use crate::support::cases;

const CLIENTS: usize = 5;

fn any_db() -> impl Strategy<Value = Db> {
    prop::sample::select(Db::ALL.to_vec())
}

fn any_api() -> impl Strategy<Value = Api> {
    prop::sample::select(Api::ALL.to_vec())
}

/// What usually comes together, so that schedules get far; everything else is in the single steps.
fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    let client = || 0..CLIENTS;
    let one = |step: Step| vec![step];
    prop_oneof![
        6 => (client(), any_api()).prop_map(|(c, api)| {
            vec![Step::Send(c, api), Step::Commit(c), Step::Answer(c)]
        }),
        2 => (client(), any_api()).prop_map(|(c, api)| vec![Step::Send(c, api), Step::Commit(c)]),
        2 => client().prop_map(move |c| one(Step::Answer(c))),
        1 => client().prop_map(move |c| one(Step::Commit(c))),
        1 => client().prop_map(move |c| one(Step::Return(c))),
        2 => client().prop_map(move |c| one(Step::GiveUp(c))),
        6 => any_db().prop_map(move |db| one(Step::Ship(db))),
        2 => any_db().prop_map(move |db| vec![Step::Follow(db), Step::Ship(db), Step::Ship(db)]),
        3 => any_api().prop_map(move |api| one(Step::Poll(api))),
        1 => any_db().prop_map(|db| vec![Step::Crash(Db::P), Step::Promote(db)]),
        1 => any_db().prop_map(move |db| one(Step::Crash(db))),
        2 => any_db().prop_map(|db| vec![Step::LoseKey, Step::Promote(db)]),
        1 => Just(one(Step::LoseKey)),
        1 => any_db().prop_map(move |db| one(Step::Promote(db))),
        1 => any_db().prop_map(move |db| one(Step::RetakeKey(db))),
        2 => any_db().prop_map(|db| vec![Step::Rejoin(db), Step::Follow(db)]),
        5 => any_api().prop_map(|api| vec![Step::Observe(api), Step::Act(api)]),
        1 => any_api().prop_map(move |api| one(Step::Observe(api))),
        1 => any_api().prop_map(move |api| one(Step::Act(api))),
        4 => (any_api(), 0..3usize).prop_map(move |(api, n)| one(Step::Repair(api, n))),
        1 => any_api().prop_map(move |api| one(Step::Close(api))),
        1 => any_api().prop_map(move |api| one(Step::CrashApi(api))),
        1 => any_api().prop_map(move |api| one(Step::LoseRegistration(api))),
    ]
}

fn any_request(conditional: f64) -> impl Strategy<Value = Request> {
    let op = prop_oneof![
        3 => (0..3u8).prop_map(Op::Add),
        3 => (0..3u8).prop_map(Op::Remove),
        2 => (0..8u8).prop_map(Op::Replace),
    ];
    (op, prop::bool::weighted(conditional))
        .prop_map(|(op, is_conditional)| Request { op, is_conditional })
}

fn any_requests(conditional: f64) -> impl Strategy<Value = Vec<Request>> {
    prop::collection::vec(any_request(conditional), CLIENTS)
}

fn any_schedule() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any_steps(), 5..45).prop_map(|steps| steps.concat())
}

proptest! {
    #![proptest_config(cases(1500, 40))]

    #[test]
    fn every_schedule_ends_in_an_order_of_its_writes(
        requests in any_requests(0.0), initial in 0..8u8, steps in any_schedule(),
    ) {
        let result = check(REAL, initial, 100, &requests, &steps);
        prop_assert!(result.is_ok(), "{:?}", result);
    }

    #[test]
    fn conditional_writes_end_in_an_order_too(
        requests in any_requests(0.4), initial in 0..8u8, steps in any_schedule(),
    ) {
        let result = check(REAL, initial, 100, &requests, &steps);
        prop_assert!(result.is_ok(), "{:?}", result);
    }

    #[test]
    fn a_limit_that_is_reached_loses_only_what_is_listed(
        requests in any_requests(0.0), initial in 0..4u8, steps in any_schedule(),
    ) {
        let result = check(REAL, initial, 2, &requests, &steps);
        prop_assert!(result.is_ok(), "{:?}", result);
    }
}
