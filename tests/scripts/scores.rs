//! The scores in Rust and in Lua are the same numbers.

use crate::support::World;
use job_router::fairness::{
    aged_head, bucket_score, fifo_score, head_in, head_of, share_rank, share_rank_in, since_in, tenant_score,
    waits_since,
};
use job_router::job::Priority;
use proptest::prelude::*;

/// Redis' own library, and one line per input: running, weight, priority, queued_at_ms, served.
const SCORES: &str = concat!(
    include_str!("../../lua/lib/score.lua"),
    r"
    local lines = {}
    for i = 1, #ARGV, 5 do
      local running, weight, priority = tonumber(ARGV[i]), tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
      local head = head_of(tonumber(ARGV[i + 3]))
      local tenant = tenant_score(running, weight, waits_since(head, tonumber(ARGV[i + 4])))
      lines[#lines + 1] = string.format('%.17g %.17g %.17g %.17g %.17g %.17g %.17g', head, share_rank(running, weight), tenant,
        bucket_score(priority, running, head), fifo_score(priority, head), since_in(tenant), aged_head(priority, head, weight))
    end
    return lines"
);

type Input = (u32, u32, i64, u64, u64);

fn line((running, weight, priority, at, served): Input) -> String {
    let (priority, head) = (Priority::new(priority).expect("in range"), head_of(at));
    let tenant = tenant_score(running, weight, waits_since(head, served));
    let (bucket, fifo) = (bucket_score(priority, running, head), fifo_score(priority, head));
    let aged = aged_head(priority, head, weight.into());
    assert_eq!(share_rank_in(tenant), share_rank(running, weight));
    assert_eq!(head_in(bucket), head);
    format!("{head} {} {tenant} {bucket} {fifo} {} {aged}", share_rank(running, weight), since_in(tenant))
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let running = prop_oneof![0u32..40, 1000u32..1100, any::<u32>()];
    let weight = prop_oneof![1u32..10, 1u32..2000, 1u32..];
    // Before, in and after the 40 bits; Lua holds numbers up to 2^53.
    let at =
        || prop_oneof![1_735_689_599_990u64..1_735_689_600_010, 1_700_000_000_000u64..3_000_000_000_000, 0u64..1 << 53];
    let served = prop_oneof![at(), 6_942_758_399_960u64..6_942_758_400_040, 6_800_000_000_000u64..12_000_000_000_000];
    prop::collection::vec((running, weight, -2i64..=2, at(), served), 200)
}

#[test]
fn rust_and_lua_agree_on_every_bit_of_every_score() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let world = runtime.block_on(World::new());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 50, ..ProptestConfig::default() });
    let outcome = runner.run(&inputs(), |inputs| {
        let words: Vec<String> = inputs
            .iter()
            .flat_map(|(r, w, p, at, served)| {
                [r.to_string(), w.to_string(), p.to_string(), at.to_string(), served.to_string()]
            })
            .collect();
        let args: Vec<&str> = [SCORES, "0"].into_iter().chain(words.iter().map(String::as_str)).collect();
        let answers = runtime.block_on(world.command("EVAL", &args)).into_array().expect("lines");
        for (input, answer) in inputs.iter().zip(answers) {
            prop_assert_eq!(answer.as_str().expect("text"), line(*input), "{:?}", input);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
