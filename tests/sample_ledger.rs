//! The law of the ledger, for any steps, total and policy.

use fpdm_sample::{
    Adaptive, AllocationPolicy, Branches, Counts, Curve, Ledger, Ramp, Slope, SolveRecord, Spend, Table, Uniform, Work,
    apportion,
};
use proptest::prelude::*;

/// Says whatever it is given.
struct Arbitrary(Vec<usize>);

impl AllocationPolicy for Arbitrary {
    fn propose(&mut self, ledger: &Ledger) -> usize {
        self.0[ledger.done() % self.0.len()]
    }
}

/// Plays a trajectory whose solves need `needs[i]` applications at the most, and checks the law at every solve.
fn play(policy: &mut dyn AllocationPolicy, total: usize, solves: usize, needs: &[usize]) -> Vec<usize> {
    let mut ledger = Ledger::new(total, solves).unwrap();
    let mut spent = Vec::new();
    while ledger.solves_left() > 0 {
        assert!((0. ..=1.).contains(&ledger.progress()));
        let allowed = ledger.allow(policy.propose(&ledger));
        assert!(allowed >= 1 && allowed + ledger.solves_left() - 1 <= ledger.left());
        let applications = allowed.min(needs[spent.len() % needs.len()].max(1));
        let residual = 0.5f64.powi(applications as i32);
        policy.observe(&SolveRecord { t: 0., applications, residual, rate: Some(2.) }, &ledger);
        ledger.book(applications);
        spent.push(applications);
    }
    assert_eq!(spent.len(), solves);
    assert_eq!(ledger.allow(usize::MAX), 0);
    assert_eq!(spent.iter().sum::<usize>(), ledger.spent());
    assert!(ledger.spent() <= total);
    spent
}

fn any_ramp() -> impl Strategy<Value = Ramp> {
    let weight = prop_oneof![Just(0.), 1e-3..1e3f64, Just(f64::MAX), Just(-1.), Just(f64::NAN)];
    let slope = prop_oneof![Just(Slope::Linear), Just(Slope::Geometric)];
    (weight.clone(), weight, slope).prop_map(|(early, late, slope)| Ramp { early, late, slope })
}

fn any_curve() -> impl Strategy<Value = Curve> {
    proptest::collection::vec(0.01..100f64, 1..6).prop_map(|weights| {
        let n = weights.len() as f64;
        Curve::new(weights.iter().enumerate().map(|(i, w)| (i as f64 / n, *w)).collect()).unwrap()
    })
}

const UNLIMITED: &[usize] = &[usize::MAX];

proptest! {
    #[test]
    fn static_policies_spend_the_total_exactly(
        solves in 1usize..120, extra in 0usize..600, ramp in any_ramp(), curve in any_curve(),
    ) {
        let total = solves + extra;
        let mut policies: [Box<dyn AllocationPolicy>; 3] = [Box::new(Uniform), Box::new(ramp), Box::new(curve)];
        for policy in &mut policies {
            prop_assert_eq!(play(policy, total, solves, UNLIMITED).iter().sum::<usize>(), total);
        }
        let counts = Counts { from_noise: ramp.plan(total, solves) };
        counts.check(solves).unwrap();
        prop_assert_eq!(counts.total(), total);
        prop_assert_eq!(play(&mut Table::Counts(counts.clone()), total, solves, UNLIMITED), counts.from_noise);
    }

    #[test]
    fn any_policy_keeps_the_law(
        solves in 1usize..60,
        extra in 0usize..300,
        proposals in proptest::collection::vec(any::<usize>(), 1..20),
        needs in proptest::collection::vec(1usize..40, 1..20),
        threshold in prop_oneof![Just(None), (1e-12..1e3).prop_map(Some)],
    ) {
        let total = solves + extra;
        play(&mut Arbitrary(proposals), total, solves, &needs);
        play(&mut Adaptive { threshold, ..Adaptive::default() }, total, solves, &needs);
        play(&mut Uniform, total, solves, &needs);
        play(&mut { Ramp::EARLY }, total, solves, &needs);
    }

    #[test]
    fn ramps_are_monotone(solves in 2usize..80, extra in 0usize..400) {
        let early = Ramp::EARLY.plan(solves + extra, solves);
        prop_assert!(early.windows(2).all(|p| p[0] >= p[1]));
        let late = Ramp::LATE.plan(solves + extra, solves);
        prop_assert!(late.windows(2).all(|p| p[0] <= p[1]));
    }

    #[test]
    fn parts_add_up(weights in proptest::collection::vec(any::<f64>(), 1..50), extra in 0usize..10_000) {
        let total = weights.len() + extra;
        let parts = apportion(&weights, total);
        prop_assert!(parts.iter().all(|&n| n >= 1));
        prop_assert_eq!(parts.iter().sum::<usize>(), total);
    }

    #[test]
    fn branches_share_a_budget(
        conditional in 1usize..100, without in 0usize..100, extra in 0usize..500, share in 0.01..10f64,
    ) {
        let unconditional = without.min(conditional);
        let work = Work { pre: 1, group: 2, post: 3, ..Work::MAP };
        let solves = conditional + unconditional;
        let passes = solves * 6 + extra;
        let branches = Branches { conditional, unconditional, share };
        let (a, b) = Spend::BlockPasses(passes).split(&work, branches).unwrap();
        prop_assert_eq!(a.total() + b.total(), solves + extra / 2);
        prop_assert!(Spend::BlockPasses(solves * 6 - 1).split(&work, branches).is_err());
        prop_assert!(Spend::Applications(solves - 1).split(&work, branches).is_err());
    }

    #[test]
    fn the_published_rounding_stays_within_its_budget(solves in 1usize..80, extra in 0usize..400, early in any::<bool>()) {
        let (a, b) = if early { (1.5, 0.5) } else { (0.5, 1.5) };
        let counts = Counts::published_ramp(a, b, solves + extra, solves).unwrap();
        prop_assert!(counts.total() <= solves + extra);
        counts.check(solves).unwrap();
        play(&mut counts.clone(), solves + extra, solves, UNLIMITED);
    }
}

#[test]
fn a_table_file_is_named_in_its_errors() {
    let missing = Table::read("no/such/table.txt").unwrap_err().to_string();
    assert!(missing.contains("no/such/table.txt"), "{missing}");
    for (text, word) in
        [("", "empty"), ("0\n", "whole number"), ("1 2\n3\n", "line 2"), ("a", "no number"), ("2 1", "[0, 1]")]
    {
        let error = Table::parse(text).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn adaptive_spends_where_it_is_hard() {
    // Early solves converge in 2 applications, late ones need 12.
    let needs: Vec<usize> = (0..40).map(|i| if i < 20 { 2 } else { 12 }).collect();
    let spent = play(&mut Adaptive::from_threshold(1e-3), 200, 40, &needs);
    let (early, late): (usize, usize) = (spent[..20].iter().sum(), spent[20..].iter().sum());
    assert!(late > 3 * early, "{spent:?}");
}
