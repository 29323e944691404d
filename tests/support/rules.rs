//! Who may run what: the reference, which shares nothing with the router.

use serde_json::{Value, json};

/// The rules, on what Rails says alone. An instance runner serves all projects that allow it, a group runner those below
/// one of its groups that allow it, a project runner its projects. It has all the job's tags, takes jobs without tags or not,
/// takes only protected ones or all, has all features that the job requires, and is not paused.
pub fn may_run(runner: &Value, features: &[&str], job: &Value) -> bool {
    let has = |list: &Value, wanted: &Value| list.as_array().is_some_and(|list| list.contains(wanted));
    let all = |list: &Value, mut holds: Box<dyn FnMut(&Value) -> bool + '_>| {
        list.as_array().is_none_or(|list| list.iter().all(&mut holds))
    };
    let in_scope = match runner["type"].as_str().expect("a type") {
        "instance" => job["instance_runners"] == true,
        "group" => {
            let ours = job["namespace_ids"].as_array().expect("a list");
            job["group_runners"] == true && ours.iter().any(|id| has(&runner["group_ids"], id))
        }
        "project" => has(&runner["project_ids"], &job["project_id"]),
        _ => false,
    };
    let tagged = job["tags"] != json!([]);
    in_scope
        && runner["paused"] == false
        && all(&job["tags"], Box::new(|tag| has(&runner["tags"], tag)))
        && (tagged || runner["run_untagged"] == true)
        && (runner["protected_only"] == false || job["protected"] == true)
        && all(&job["requires"], Box::new(|wanted| features.iter().any(|feature| *wanted == **feature)))
}
