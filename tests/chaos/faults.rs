//! What goes wrong, drawn from a seed: the same seed draws the same faults at the same times.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tokio::task::{JoinSet, spawn_blocking};

use super::clocks::WRONG_BY_S;
use super::history::{What, pause};
use super::points::{POINTS, dies_at};
use super::proxy::Weather;
use super::rig::Rig;
use super::servers::Topology;

/// One thing that goes wrong, for a while where it has a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    PodKilled,
    PodFrozen,
    PodRolled,
    PodDied,
    ManagerKilled,
    ManagerFrozen,
    PodClock,
    ManagerClock,
    FrontCut,
    FrontStalled,
    FrontHalfOpen,
    FrontRepliesLost,
    BackCut,
    BackStalled,
    BackSlow,
    BackHalfOpen,
    BackRepliesLost,
    RedisKilled,
    RedisFrozen,
    ReplicaKilled,
    ReplicaFrozen,
    SlotMoved,
    HandedOver,
    RedisClock,
    PrimaryLost,
}

use Fault::*;

const ANYWHERE: [Fault; 12] = [
    PodKilled,
    PodFrozen,
    PodRolled,
    PodDied,
    ManagerKilled,
    ManagerFrozen,
    PodClock,
    ManagerClock,
    FrontCut,
    FrontStalled,
    FrontHalfOpen,
    FrontRepliesLost,
];
/// With one server, whose connections go through proxies.
const WITH_ONE: [Fault; 8] =
    [BackCut, BackStalled, BackSlow, BackHalfOpen, BackRepliesLost, RedisKilled, RedisFrozen, RedisClock];
const WITH_REPLICAS: [Fault; 5] = [RedisKilled, RedisFrozen, ReplicaKilled, ReplicaFrozen, RedisClock];
/// Without a barrier, a primary that is lost takes its last writes with it.
const IN_CLUSTER: [Fault; 6] = [SlotMoved, HandedOver, ReplicaKilled, ReplicaFrozen, RedisClock, PrimaryLost];

/// How long a pod may take until it comes to the point at which it dies.
const DIES_IN: Duration = Duration::from_secs(3);

/// A fault that was drawn: when, what, to which of those there are, and for how long.
#[derive(Debug, Clone, Copy)]
struct Drawn {
    at: Duration,
    fault: Fault,
    which: usize,
    length: Duration,
    /// Where a clock is moved to.
    ahead_s: i64,
}

/// Lets things go wrong for so long, and puts all right again. Answers how often what went wrong.
pub async fn run(rig: &Arc<Rig>, seed: u64, for_so_long: Duration) -> BTreeMap<String, u64> {
    let start = Instant::now();
    let mut under_way = JoinSet::new();
    for drawn in draw(rig.topology, seed, for_so_long) {
        tokio::time::sleep_until((start + drawn.at).into()).await;
        under_way.spawn(happen(rig.clone(), drawn));
    }
    let mut counts = BTreeMap::new();
    while let Some(happened) = under_way.join_next().await {
        if let Some(fault) = happened.expect("the rig does not panic") {
            *counts.entry(format!("{fault:?}")).or_default() += 1;
        }
    }
    counts
}

fn draw(topology: Topology, seed: u64, for_so_long: Duration) -> Vec<Drawn> {
    let mut random = StdRng::seed_from_u64(seed);
    let of_redis = match topology {
        Topology::One => &WITH_ONE[..],
        Topology::Sentinel => &WITH_REPLICAS,
        Topology::Cluster => &IN_CLUSTER,
    };
    let mut drawn = Vec::new();
    let mut at = Duration::from_secs(1);
    while at < for_so_long {
        // Half of them are of Redis: there all comes together.
        let from = if random.random() { of_redis } else { &ANYWHERE[..] };
        let fault = *from.choose(&mut random).expect("there are some");
        // Shorter and longer than a lease.
        let length = Duration::from_millis(*[100, 500, 1_500, 3_000, 7_000].choose(&mut random).expect("some"));
        let ahead_s = *[-WRONG_BY_S, 0, WRONG_BY_S].choose(&mut random).expect("some");
        drawn.push(Drawn { at, fault, which: random.random_range(0..1_000), length, ahead_s });
        at += Duration::from_millis(random.random_range(200..2_500));
    }
    drawn
}

/// Does it; `None` if what it would be done to is in the midst of another fault.
async fn happen(rig: Arc<Rig>, drawn: Drawn) -> Option<Fault> {
    let Drawn { fault, which, length, .. } = drawn;
    let weather = match fault {
        FrontCut | BackCut => None,
        FrontStalled | BackStalled => Some(Weather::Stalled),
        FrontHalfOpen | BackHalfOpen => Some(Weather::HalfOpen),
        FrontRepliesLost | BackRepliesLost => Some(Weather::RepliesLost),
        BackSlow => Some(Weather::Slow(Duration::from_millis(50))),
        _ => return spawn_blocking(move || happen_to_process(&rig, drawn)).await.expect("the rig does not panic"),
    };
    let front = [FrontCut, FrontStalled, FrontHalfOpen, FrontRepliesLost].contains(&fault);
    let proxy = if front { rig.front.clone() } else { rig.back[which % rig.back.len()].clone() };
    rig.fault(&format!("{fault:?} {which} {length:?}"));
    match weather {
        None => proxy.cut(),
        Some(weather) => proxy.endure(weather, length).await,
    }
    Some(fault)
}

fn happen_to_process(rig: &Rig, drawn: Drawn) -> Option<Fault> {
    let Drawn { fault, which, length, ahead_s, .. } = drawn;
    let begin = || rig.fault(&format!("{fault:?} {which} {length:?}"));
    match fault {
        // It stays so, as does a host's, until it is moved again.
        PodClock | ManagerClock => {
            let clocks = if fault == PodClock { &rig.pod_clocks } else { &rig.manager_clocks };
            rig.fault(&format!("{fault:?} {} {ahead_s} s", which % clocks.len()));
            clocks[which % clocks.len()].move_to(ahead_s);
        }
        PodKilled | PodFrozen | PodRolled => {
            let at = which % rig.pods.len();
            let mut slot = rig.pods[at].try_lock().ok()?;
            begin();
            if fault == PodFrozen {
                let pod = slot.as_ref().expect("it is up");
                pod.freeze();
                pause(length);
                pod.signal(Signal::CONT);
            } else {
                rig.stop_pod(at, &mut slot, if fault == PodKilled { Signal::KILL } else { Signal::TERM });
                pause(length);
                rig.start_pod(at, &mut slot);
            }
        }
        PodDied => {
            let at = which % rig.pods.len();
            let mut slot = rig.pods[at].try_lock().ok()?;
            let point = POINTS[which / 3 % POINTS.len()];
            rig.fault(&format!("{fault:?} {at} at {point}"));
            rig.stop_pod(at, &mut slot, Signal::KILL);
            rig.start_pod_with(at, &mut slot, vec![dies_at(point, which % 20)]);
            // There it dies, unless it does not come there.
            let until = Instant::now() + DIES_IN;
            while !slot.as_mut().expect("it was started").is_dead() && Instant::now() < until {
                pause(Duration::from_millis(20));
            }
            rig.stop_pod(at, &mut slot, Signal::KILL);
            pause(length);
            rig.start_pod(at, &mut slot);
        }
        ManagerKilled | ManagerFrozen => {
            let at = which % rig.managers.len();
            let mut slot = rig.managers[at].try_lock().ok()?;
            begin();
            if fault == ManagerFrozen {
                let manager = slot.as_ref().expect("it is up");
                manager.freeze();
                rig.notes.add(What::Frozen { manager: manager.manager.clone() });
                pause(length);
                rig.notes.add(What::Thawed { manager: manager.manager.clone() });
                manager.thaw();
            } else {
                rig.kill_manager(&mut slot);
                pause(length);
                rig.start_manager(at, &mut slot);
            }
        }
        _ => return happen_to_redis(rig, drawn),
    }
    Some(fault)
}

/// One at a time: two of three servers down is more than is promised for.
fn happen_to_redis(rig: &Rig, drawn: Drawn) -> Option<Fault> {
    let Drawn { fault, which, length, ahead_s, .. } = drawn;
    let mut servers = rig.servers.try_lock().ok()?;
    let primary = servers.primary()?;
    if [SlotMoved, HandedOver].contains(&fault) {
        rig.fault(&format!("{fault:?}"));
        let done = if fault == SlotMoved { servers.move_slot(Duration::from_millis(5)) } else { servers.hand_over() };
        done.expect("the cluster does as it is told");
        servers.until_sound();
        return Some(fault);
    }
    if fault == RedisClock {
        // Any node may be the primary one day; often enough it is the one that is.
        let at = if which % 2 == 0 { primary } else { which / 2 % servers.count() };
        rig.fault(&format!("{fault:?} {at} {ahead_s} s"));
        servers.move_clock(at, ahead_s);
        servers.until_sound();
        return Some(fault);
    }
    if fault == PrimaryLost {
        let at = if which % 2 == 0 { primary } else { servers.primary_of_inbox()? };
        rig.fault(&format!("{fault:?} {at}"));
        rig.notes.add(What::PrimaryLost);
        servers.kill(at);
        pause(length.max(Duration::from_secs(6))); // it comes back when its replica has taken over
        servers.start_again(at);
        servers.until_sound();
        rig.notes.add(What::PrimaryReplaced);
        return Some(fault);
    }
    let replicas = servers.replicas();
    let at = if [RedisKilled, RedisFrozen].contains(&fault) { primary } else { replicas[which % replicas.len()] };
    // A primary that is killed is not there again before another has taken over: it would come back with what it had, or less.
    let length = if servers.count() > 1 && fault == RedisKilled { length.max(Duration::from_secs(6)) } else { length };
    rig.fault(&format!("{fault:?} {at} {length:?}"));
    if [RedisFrozen, ReplicaFrozen].contains(&fault) {
        servers.freeze(at);
        pause(length);
        servers.thaw(at);
    } else {
        servers.kill(at);
        pause(length);
        servers.start_again(at);
    }
    servers.until_sound();
    Some(fault)
}
