//! What a load cost, as Markdown and as JSON.

use serde_json::{Value, json};

use crate::meter::Cost;

/// Rows to print.
#[derive(Debug, Default)]
pub struct Report {
    /// One for each load and server.
    pub rows: Vec<Row>,
}

/// One load on one server, or on a server and its peer.
#[derive(Debug)]
pub struct Row {
    /// Name of the load.
    pub load: String,
    /// The server's cost, one for each round.
    pub costs: Vec<Cost>,
    /// The peer and its costs.
    pub peer: Option<(&'static str, Vec<Cost>)>,
    /// The highest ratio to the peer, or the highest figure, that is good enough.
    pub bar: Option<f64>,
}

impl Report {
    /// A report of one measurement.
    pub fn of(load: &str, cost: Cost) -> Self {
        Self { rows: vec![Row { load: load.into(), costs: vec![cost], peer: None, bar: None }] }
    }

    /// A table; what its figures are stands under it.
    pub fn markdown(&self) -> String {
        let mut out = String::from("| load | tavi | peer | ratio | bar | |\n|---|---|---|---|---|---|\n");
        for row in &self.rows {
            out.push_str(&row.markdown());
        }
        out + "\nCPU: ms of user and system time for 1,000 deliveries. Idle: KiB of resident memory for one connection. \
               Latency: µs until PUBACK, or until a chat message came. Retained: MiB of resident memory in all. Medians of the rounds; in brackets \
               deliveries per second and bytes on disk for each, or the latency of the slowest of 100.\n"
    }

    /// The same as JSON, with every round.
    pub fn json(&self) -> String {
        Value::Array(self.rows.iter().map(Row::json).collect()).to_string()
    }
}

impl Row {
    /// The median figure, and its ratio to the peer's.
    fn figures(&self) -> (Option<f64>, Option<f64>, Option<f64>) {
        let own = median(&self.costs);
        let peer = self.peer.as_ref().and_then(|(_, costs)| median(costs));
        (own, peer, own.zip(peer).map(|(own, peer)| own / peer))
    }

    fn markdown(&self) -> String {
        let (own, _, ratio) = self.figures();
        let judged = if self.peer.is_some() { ratio } else { own };
        let verdict = judged.zip(self.bar).map_or("", |(value, bar)| if value <= bar { "holds" } else { "missed" });
        let peer = self.peer.as_ref().map_or("–".into(), |(name, costs)| format!("{name} {}", shown(costs)));
        let number = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.2}"));
        format!(
            "| {} | {} | {peer} | {} | {} | {verdict} |\n",
            self.load,
            shown(&self.costs),
            number(ratio),
            number(self.bar)
        )
    }

    fn json(&self) -> Value {
        let (own, peer, ratio) = self.figures();
        let costs = |costs: &[Cost]| costs.iter().map(cost_json).collect::<Vec<_>>();
        json!({
            "load": self.load,
            "figure": own,
            "rounds": costs(&self.costs),
            "peer": self.peer.as_ref().map(|(name, rounds)| json!({"name": name, "figure": peer, "rounds": costs(rounds)})),
            "ratio": ratio,
            "bar": self.bar,
        })
    }
}

fn median(costs: &[Cost]) -> Option<f64> {
    let mut figures: Vec<f64> = costs.iter().map(Cost::figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

fn shown(costs: &[Cost]) -> String {
    let Some(figure) = median(costs) else { return "not measured".into() };
    let mut notes: Vec<(f64, String)> = costs.iter().filter_map(note).collect();
    notes.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    match notes.get(notes.len() / 2) {
        Some((_, note)) => format!("{figure:.2} ({note})"),
        None => format!("{figure:.2}"),
    }
}

/// What stands in brackets, and by what it is sorted.
fn note(cost: &Cost) -> Option<(f64, String)> {
    match *cost {
        Cost::Flow { deliveries, seconds, written_kib, .. } => {
            let (rate, written) = (deliveries as f64 / seconds, written_kib * 1024.0 / deliveries.max(1) as f64);
            let disk = if written >= 1.0 { format!(", {written:.0} B") } else { String::new() };
            Some((rate, format!("{rate:.0}/s{disk}")))
        }
        Cost::Latency { p99_us, .. } => Some((p99_us, format!("p99 {p99_us:.0}"))),
        Cost::Idle { .. } | Cost::Held { .. } => None,
    }
}

fn cost_json(cost: &Cost) -> Value {
    match *cost {
        Cost::Flow { deliveries, seconds, server_ms, injector_ms, written_kib } => json!({
            "deliveries": deliveries, "seconds": seconds, "server_ms": server_ms, "injector_ms": injector_ms,
            "ms_per_1000": cost.figure(), "written_kib": written_kib,
        }),
        Cost::Latency { publications, p50_us, p99_us } => {
            json!({ "publications": publications, "p50_us": p50_us, "p99_us": p99_us })
        }
        Cost::Held { topics, resident_mib } => json!({ "topics": topics, "resident_mib": resident_mib }),
        Cost::Idle { connections, resident_kib } => json!({
            "connections": connections, "resident_kib": resident_kib, "kib_per_connection": cost.figure(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(server_ms: f64) -> Cost {
        Cost::Flow { deliveries: 1000, seconds: 1.0, server_ms, injector_ms: 1.0, written_kib: 0.0 }
    }

    #[test]
    fn the_median_is_judged_by_its_ratio() {
        let costs = vec![flow(9.0), flow(2.0), flow(1.0)];
        let row = Row { load: "chat".into(), costs, peer: Some(("ejabberd", vec![flow(10.0)])), bar: Some(0.25) };
        assert_eq!(row.markdown(), "| chat | 2.00 (1000/s) | ejabberd 10.00 (1000/s) | 0.20 | 0.25 | holds |\n");
    }

    #[test]
    fn what_went_to_disk_and_the_slowest_stand_in_brackets() {
        let flow = Cost::Flow { deliveries: 512, seconds: 1.0, server_ms: 512.0, injector_ms: 0.0, written_kib: 50.0 };
        assert_eq!(shown(&[flow]), "1000.00 (512/s, 100 B)");
        assert_eq!(shown(&[Cost::Latency { publications: 9, p50_us: 7.0, p99_us: 8.0 }]), "7.00 (p99 8)");
    }

    #[test]
    fn without_a_peer_the_figure_itself_is_judged() {
        let costs = vec![Cost::Idle { connections: 10, resident_kib: 130.0 }];
        let row = Row { load: "idle".into(), costs, peer: None, bar: Some(12.0) };
        assert!(row.markdown().contains("missed"));
    }
}
