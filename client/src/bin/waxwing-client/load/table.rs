//! Results of several runs side by side: medians of each label's runs, and ratios to one of the labels.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::histogram::median;

#[derive(Debug, Args)]
pub struct Table {
    /// Files of results, one JSON object a line
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The label to which the others are compared [default: the first]
    #[arg(long, value_name = "LABEL")]
    against: Option<String>,
}

#[derive(Deserialize)]
struct Line {
    scenario: String,
    label: String,
    measures: Vec<Map<String, Value>>,
    #[serde(default)]
    options: Map<String, Value>,
    #[serde(flatten)]
    facts: Map<String, Value>,
}

/// The figures of a measure that a table shows, and what they are called there. Others are in the results.
const SHOWN: &[(&str, &str)] = &[
    ("per_second", "a second"),
    ("rate", "messages a second"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("cpu_ms_each", "CPU ms each"),
    ("other_cpu_ms_each", "CPU ms each, second server"),
    ("written_bytes_each", "bytes written each"),
    ("memory_kb_each", "KB each"),
    ("usable_ms", "usable after ms"),
    ("complete_ms", "complete after ms"),
    ("mb_per_second", "MB a second"),
    ("missing", "missing"),
];

/// Of a scenario as a whole.
const FACTS: &[(&str, &str)] = &[
    ("pss_mb_before", "memory before, MB"),
    ("pss_mb_after", "memory after, MB"),
    ("data_mb_after", "data MB"),
    ("start_ms", "start to ready ms"),
];

/// Options that say how something was measured, not what.
const HOW: &[&str] = &["rate", "step", "seconds", "most", "first", "further"];

/// Says in each scenario's name with which options it ran, where a label has several runs that differ in them.
fn tell_apart(lines: &mut [Line]) {
    let mut seen: BTreeMap<(String, String, String), BTreeSet<String>> = BTreeMap::new();
    for line in lines.iter() {
        for (option, value) in line.options.iter().filter(|(option, _)| !HOW.contains(&option.as_str())) {
            let key = (line.scenario.clone(), option.clone(), line.label.clone());
            seen.entry(key).or_default().insert(value.to_string());
        }
    }
    let several = seen.into_iter().filter(|(_, values)| values.len() > 1);
    let differ: BTreeSet<_> = several.map(|((scenario, option, _), _)| (scenario, option)).collect();
    for line in lines {
        let told =
            |(option, _): &(&String, &Value)| differ.contains(&(line.scenario.clone(), (*option).clone()));
        let told: Vec<String> =
            line.options.iter().filter(told).map(|(option, value)| format!("{option} {value}")).collect();
        if !told.is_empty() {
            line.scenario = format!("{}, {}", line.scenario, told.join(", "));
        }
    }
}

/// Scenario, measure, figure, in the order in which they came, with the figures of each label.
#[derive(Default)]
struct Rows {
    order: Vec<(String, String, &'static str)>,
    figures: BTreeMap<(String, String, &'static str), BTreeMap<String, Vec<f64>>>,
    labels: Vec<String>,
}

impl Rows {
    fn add(&mut self, line: Line) {
        if !self.labels.contains(&line.label) {
            self.labels.push(line.label.clone());
        }
        for measure in &line.measures {
            let name = measure.get("name").and_then(Value::as_str).unwrap_or_default();
            for (figure, shown) in SHOWN {
                let found = measure.get(*figure).and_then(Value::as_f64);
                self.note(&line.scenario, name, shown, &line.label, found);
            }
        }
        for (fact, shown) in FACTS {
            self.note(&line.scenario, "", shown, &line.label, line.facts.get(*fact).and_then(Value::as_f64));
        }
    }

    fn note(&mut self, scenario: &str, measure: &str, shown: &'static str, label: &str, figure: Option<f64>) {
        let Some(figure) = figure else { return };
        let key = (scenario.to_owned(), measure.to_owned(), shown);
        if !self.figures.contains_key(&key) {
            self.order.push(key.clone());
        }
        self.figures.entry(key).or_default().entry(label.to_owned()).or_default().push(figure);
    }

    /// Markdown: a row for each figure; each label has its median and, unless it is the one compared against, how
    /// many times that one's figure is of its own.
    fn markdown(mut self, against: &str) -> String {
        self.labels.sort_by_key(|label| label != against);
        let mut text = String::from("| scenario | what | figure |");
        for label in &self.labels {
            let _ = write!(text, " {label} |");
            if label != against {
                let _ = write!(text, " {label} / {against} |");
            }
        }
        let columns = 2 + 2 * self.labels.len();
        let _ = write!(text, "\n|{}\n", " --- |".repeat(columns));
        for scenario in self.scenarios() {
            for key in self.order.iter().filter(|(of, ..)| *of == scenario) {
                let _ = write!(text, "| {} | {} | {} |", key.0, key.1, key.2);
                let figures = &self.figures[key];
                let of = |label: &str| figures.get(label).and_then(|figures| median(figures));
                for label in &self.labels {
                    let _ = write!(text, " {} |", shown(of(label)));
                    if label != against {
                        let ratio = of(label).zip(of(against)).filter(|(_, base)| *base > 0.0);
                        let _ = write!(text, " {} |", shown(ratio.map(|(own, base)| own / base)));
                    }
                }
                text.push('\n');
            }
        }
        text
    }

    fn scenarios(&self) -> Vec<String> {
        let mut ordered: Vec<String> = Vec::new();
        for (scenario, ..) in &self.order {
            if !ordered.contains(scenario) {
                ordered.push(scenario.clone());
            }
        }
        ordered
    }
}

/// Three digits are enough to compare.
fn shown(figure: Option<f64>) -> String {
    let Some(figure) = figure else { return "–".to_owned() };
    match figure.abs() {
        large if large >= 100.0 => format!("{figure:.0}"),
        middle if middle >= 10.0 => format!("{figure:.1}"),
        small if small >= 0.1 || small == 0.0 => format!("{figure:.2}"),
        small => format!("{figure:.*}", (2.0 - small.log10().floor()).clamp(2.0, 9.0) as usize),
    }
}

pub fn run(options: &Table) -> Result<()> {
    let mut lines = Vec::new();
    for path in &options.files {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line: Line = serde_json::from_str(line)
                .with_context(|| format!("{}:{}: no line of results", path.display(), number + 1))?;
            lines.push(line);
        }
    }
    tell_apart(&mut lines);
    let mut rows = Rows::default();
    for line in lines {
        rows.add(line);
    }
    let Some(first) = rows.labels.first().cloned() else { bail!("no results in these files") };
    let against = options.against.clone().unwrap_or(first);
    if !rows.labels.contains(&against) {
        bail!("no results of {against:?}: there are {}", rows.labels.join(", "));
    }
    print!("{}", rows.markdown(&against));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(label: &str, cpu: f64) -> Line {
        serde_json::from_value(json!({
            "scenario": "sends", "label": label, "pss_mb_after": 50.0,
            "measures": [{"name": "send", "count": 3, "cpu_ms_each": cpu, "hidden": 1.0}],
        }))
        .unwrap()
    }

    #[test]
    fn medians_and_ratios_stand_beside_each_other() {
        let mut rows = Rows::default();
        for (label, cpu) in
            [("waxwing", 0.3), ("synapse", 20.0), ("waxwing", 0.5), ("synapse", 22.0), ("waxwing", 0.4)]
        {
            rows.add(line(label, cpu));
        }
        let table = rows.markdown("synapse");
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "| scenario | what | figure | synapse | waxwing | waxwing / synapse |");
        assert_eq!(lines[1].matches("---").count(), 6);
        assert_eq!(lines[2], "| sends | send | CPU ms each | 21.0 | 0.40 | 0.0190 |");
        assert_eq!(lines[3], "| sends |  | memory after, MB | 50.0 | 50.0 | 1.00 |");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn options_that_differ_within_a_label_are_told() {
        let with = |label, senders, seconds| {
            let options = json!({"senders": senders, "seconds": seconds});
            Line { options: options.as_object().unwrap().clone(), ..line(label, 1.0) }
        };
        let mut lines = [with("a", 16, 5), with("a", 32, 6), with("b", 16, 9)];
        tell_apart(&mut lines);
        let told = lines.map(|line| line.scenario);
        assert_eq!(told, ["sends, senders 16", "sends, senders 32", "sends, senders 16"]);
        let mut lines = [with("a", 16, 5), with("b", 32, 5), line("b", 1.0)];
        tell_apart(&mut lines);
        assert!(lines.iter().all(|line| line.scenario == "sends"));
    }

    #[test]
    fn what_was_not_measured_has_a_dash() {
        let mut rows = Rows::default();
        rows.add(line("a", 1.0));
        let mut other = line("b", 2.0);
        other.measures.clear();
        rows.add(other);
        assert!(rows.markdown("a").contains("| CPU ms each | 1.00 | – | – |"));
        assert_eq!(shown(Some(1234.5)), "1234");
        assert_eq!((shown(Some(0.0)), shown(Some(0.000_123_4))), ("0.00".to_owned(), "0.000123".to_owned()));
    }
}
