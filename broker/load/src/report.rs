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

    /// A table; CPU is milliseconds for 1,000 deliveries, idle is KiB for one connection.
    pub fn markdown(&self) -> String {
        let mut out = String::from("| load | tavi | peer | ratio | bar | |\n|---|---|---|---|---|---|\n");
        for row in &self.rows {
            out.push_str(&row.markdown());
        }
        out + "\nCPU: ms of user and system time for 1,000 deliveries. Idle: KiB of resident memory for one connection. \
               Medians of the rounds; in brackets deliveries per second.\n"
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
    let mut rates: Vec<f64> = costs.iter().filter_map(rate).collect();
    rates.sort_by(f64::total_cmp);
    match rates.get(rates.len() / 2) {
        Some(rate) => format!("{figure:.2} ({rate:.0}/s)"),
        None => format!("{figure:.2}"),
    }
}

fn rate(cost: &Cost) -> Option<f64> {
    match *cost {
        Cost::Flow { deliveries, seconds, .. } => Some(deliveries as f64 / seconds),
        Cost::Idle { .. } => None,
    }
}

fn cost_json(cost: &Cost) -> Value {
    match *cost {
        Cost::Flow { deliveries, seconds, server_ms, injector_ms } => json!({
            "deliveries": deliveries, "seconds": seconds, "server_ms": server_ms, "injector_ms": injector_ms,
            "ms_per_1000": cost.figure(),
        }),
        Cost::Idle { connections, resident_kib } => json!({
            "connections": connections, "resident_kib": resident_kib, "kib_per_connection": cost.figure(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(server_ms: f64) -> Cost {
        Cost::Flow { deliveries: 1000, seconds: 1.0, server_ms, injector_ms: 1.0 }
    }

    #[test]
    fn the_median_is_judged_by_its_ratio() {
        let costs = vec![flow(9.0), flow(2.0), flow(1.0)];
        let row = Row { load: "chat".into(), costs, peer: Some(("ejabberd", vec![flow(10.0)])), bar: Some(0.25) };
        assert_eq!(row.markdown(), "| chat | 2.00 (1000/s) | ejabberd 10.00 (1000/s) | 0.20 | 0.25 | holds |\n");
    }

    #[test]
    fn without_a_peer_the_figure_itself_is_judged() {
        let costs = vec![Cost::Idle { connections: 10, resident_kib: 130.0 }];
        let row = Row { load: "idle".into(), costs, peer: None, bar: Some(12.0) };
        assert!(row.markdown().contains("missed"));
    }
}
