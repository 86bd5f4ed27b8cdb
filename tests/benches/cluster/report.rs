//! The table.

use crate::load::Cell;

/// Where it is measured, and the names of the columns.
pub fn header(place: &str) {
    println!("{place}\n");
    println!(
        "{:<8} {:>8} {:>11} {:>9} {:>9} {:>9} {:>14}",
        "machine", "clients", "commands/s", "p50 ms", "p99 ms", "p99.9 ms", "commands/sync"
    );
}

/// One cell.
pub fn row(machine: &str, clients: usize, cell: &Cell) {
    let commands = cell.latencies.len() as f64;
    let at = |quantile: f64| cell.latencies.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "{machine:<8} {clients:>8} {:>11.0} {:>9.2} {:>9.2} {:>9.2} {:>14.1}",
        commands / cell.elapsed.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(0.999),
        commands / cell.syncs.max(1) as f64
    );
}
