//! The lane alone, without what makes it durable.

use crate::{cause, create, key, line, options, report, schema};
use base::Result;
use std::future::Future;
use std::time::{Duration, Instant};
use store::engine::{self, Append, Batch, Each, Head, Tail};
use store::lease::Sign;
use store::{Cell, Engine, Revision, Steps, Tx};

/// The lane alone: an engine that loads the file and then says that all is durable.
struct Nothing(Box<dyn Engine>);

impl Engine for Nothing {
    fn images(&mut self, each: Each) -> Result<Head> {
        self.0.images(each)
    }

    fn take(&mut self, owner: &str, seen: u64) -> Result<Option<Head>> {
        self.0.take(owner, seen)
    }

    fn append(&mut self, _: &Batch) -> Append {
        Append::Done
    }

    fn renew(&mut self, _: u64, _: u64) -> Result<bool> {
        Ok(true)
    }

    fn sign(&mut self) -> Result<Sign> {
        self.0.sign()
    }

    fn release(&mut self, _: u64) -> Result<bool> {
        Ok(true)
    }

    fn tail(&mut self, _: Revision, _: usize) -> Result<Tail> {
        Ok(Tail::Entries(Vec::new()))
    }
}

pub fn measure(url: &str) -> Result<()> {
    let engine = Box::new(Nothing(engine::open(url)?));
    let (cell, mut steps) = Cell::stepped(engine, schema(), key(), options())?;
    for batch in [1, 32] {
        let one = each(&cell, &mut steps, batch, report);
        line(&format!("in memory: one record of 400,000, {batch} a batch"), format!("{one:.1} us"), "18 us");
    }
    let make = each(&cell, &mut steps, 32, |n| create(1_000_000 + n));
    line("in memory: server create, 3 records, 32 a batch", format!("{make:.1} us"), "85 us");
    Ok(())
}

/// Microseconds a transaction, from taking it to publishing it.
fn each<T>(cell: &Cell, steps: &mut Steps, batch: u64, f: impl Fn(u64) -> T) -> f64
where
    T: Fn(&mut Tx) -> Result<()> + Send + 'static,
{
    const COUNT: u64 = 32_000;
    let mut spent = Duration::ZERO;
    for from in (0..COUNT).step_by(batch as usize) {
        let mut asked: Vec<_> =
            (from..from + batch).map(|n| Box::pin(cell.write(cause(), f(n * 7)))).collect();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        for write in &mut asked {
            assert!(write.as_mut().poll(&mut cx).is_pending());
        }
        let begin = Instant::now();
        while steps.run_one() {}
        steps.append();
        steps.appended();
        spent += begin.elapsed();
    }
    spent.as_secs_f64() * 1e6 / COUNT as f64
}
