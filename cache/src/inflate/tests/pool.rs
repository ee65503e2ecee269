use std::sync::mpsc;
use std::time::Duration;

use spanfs_fetch::Priority;

use super::*;

const LONG: Duration = Duration::from_secs(20);

fn options(threads: usize) -> PoolOptions {
    PoolOptions { jobs_max: 4, bytes_max: 100, ..PoolOptions::for_threads(threads) }
}

/// A pool of one thread that is busy until the sender is used.
fn busy_pool() -> (Pool, mpsc::Sender<()>) {
    let pool = Pool::new(&options(1)).unwrap();
    let (go, wait) = mpsc::channel();
    let (started, running) = mpsc::channel();
    let job = move |_: &mut Decoder| {
        started.send(()).unwrap();
        wait.recv_timeout(LONG).unwrap();
    };
    assert!(pool.submit(Priority::OnDemand, 0, Box::new(job)).is_ok());
    running.recv_timeout(LONG).unwrap();
    (pool, go)
}

#[test]
fn on_demand_goes_first() {
    let (pool, go) = busy_pool();
    let (done, order) = mpsc::channel();
    for (name, priority) in [
        ("background", Priority::Background),
        ("prefetch", Priority::Prefetch),
        ("first", Priority::OnDemand),
        ("second", Priority::OnDemand),
    ] {
        let done = done.clone();
        let job = move |_: &mut Decoder| done.send(name).unwrap();
        assert!(pool.submit(priority, 1, Box::new(job)).is_ok());
    }
    go.send(()).unwrap();
    let order: Vec<_> = (0..4).map(|_| order.recv_timeout(LONG).unwrap()).collect();
    assert_eq!(order, ["first", "second", "prefetch", "background"]);
}

#[test]
fn a_full_queue_gives_the_job_back_at_once() {
    let (pool, go) = busy_pool();
    assert!(pool.submit(Priority::Prefetch, 60, Box::new(|_| ())).is_ok());
    let refused = pool.submit(Priority::OnDemand, 60, Box::new(|_| ()));
    assert!(refused.is_err(), "120 bytes fit into 100");
    assert!(!pool.wait_for_room(60, Duration::from_millis(10)));
    for _ in 0..3 {
        assert!(pool.submit(Priority::Prefetch, 0, Box::new(|_| ())).is_ok());
    }
    assert!(pool.submit(Priority::Prefetch, 0, Box::new(|_| ())).is_err(), "a fifth job of four");
    go.send(()).unwrap();
    assert!(pool.wait_for_room(60, LONG));
    let PoolFull(job) = refused.err().unwrap();
    while let Err(PoolFull(_)) = pool.submit(Priority::OnDemand, 60, Box::new(|_| ())) {}
    drop(job);
}

#[test]
fn a_job_larger_than_the_queue_goes_in_alone() {
    let (pool, go) = busy_pool();
    assert!(pool.submit(Priority::Prefetch, 1000, Box::new(|_| ())).is_ok());
    assert!(pool.submit(Priority::Prefetch, 1, Box::new(|_| ())).is_err());
    go.send(()).unwrap();
}

#[test]
fn a_panic_costs_no_thread_and_dropping_runs_the_rest() {
    let (pool, go) = busy_pool();
    let (done, count) = mpsc::channel();
    assert!(pool.submit(Priority::OnDemand, 0, Box::new(|_| panic!("on purpose"))).is_ok());
    for _ in 0..3 {
        let done = done.clone();
        let job = move |_: &mut Decoder| done.send(()).unwrap();
        assert!(pool.submit(Priority::Prefetch, 0, Box::new(job)).is_ok());
    }
    go.send(()).unwrap();
    drop(pool);
    drop(done);
    assert_eq!(count.iter().count(), 3);
}

#[test]
fn the_last_owner_may_be_a_job() {
    let pool = std::sync::Arc::new(Pool::new(&options(2)).unwrap());
    let (done, wait) = mpsc::channel();
    let own = pool.clone();
    let (go, start) = mpsc::channel::<()>();
    let job = move |_: &mut Decoder| {
        start.recv_timeout(LONG).unwrap();
        drop(own);
        done.send(()).unwrap();
    };
    assert!(pool.submit(Priority::OnDemand, 0, Box::new(job)).is_ok());
    drop(pool);
    go.send(()).unwrap();
    wait.recv_timeout(LONG).unwrap();
}
