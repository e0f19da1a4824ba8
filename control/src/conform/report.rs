//! The findings, for people and for programs.

use std::net::IpAddr;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use super::Mode;
use super::matrix::{Row, Verdict};
use super::packet::Family;

/// What was found about one NAT.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Its name.
    pub target: String,
    /// Which IP version was looked at.
    pub family: Family,
    /// Whether it translates at all.
    pub mode: Mode,
    /// The inside address.
    pub inside: IpAddr,
    /// The remotes.
    pub remotes: [IpAddr; 2],
    /// The external addresses that were seen.
    pub externals: Vec<IpAddr>,
    /// What random numbers came from.
    pub seed: u64,
    /// How long it took.
    pub seconds: f64,
    /// One row for every requirement.
    pub rows: Vec<Row>,
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_struct("Row", 5)?;
        row.serialize_field("name", self.check.name())?;
        row.serialize_field("source", self.check.source())?;
        row.serialize_field("requirement", self.check.requirement())?;
        row.serialize_field("observed", &self.observed)?;
        row.serialize_field("verdict", &self.verdict)?;
        row.end()
    }
}

impl Report {
    /// Rows with a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        let rows = self.rows.iter();
        rows.filter(|row| row.verdict == verdict).count()
    }

    /// Who was looked at, and what it comes to.
    pub fn summary(&self) -> String {
        let externals: Vec<String> = self.externals.iter().map(ToString::to_string).collect();
        let path = match self.mode {
            Mode::Translated => format!("{} behind {}", self.inside, externals.join(" ")),
            Mode::Routed => format!("{}, no translation: routed", self.inside),
        };
        format!(
            "{}, {}: {path}; {} pass, {} deviate, {} not tested; {:.1} s, seed {}",
            self.target,
            self.family,
            self.count(Verdict::Pass),
            self.count(Verdict::Deviation),
            self.count(Verdict::NotTested),
            self.seconds,
            self.seed
        )
    }
}

/// A heading with rows under it.
pub type Table = (Vec<String>, Vec<Vec<String>>);

/// One NAT's rows.
pub fn table(report: &Report) -> Table {
    let heading = ["SOURCE", "REQUIREMENT", "OBSERVED", "VERDICT"].map(str::to_owned);
    let line = |row: &Row| {
        vec![
            row.check.source().to_owned(),
            row.check.requirement().to_owned(),
            row.observed.clone(),
            row.verdict.label().to_owned(),
        ]
    };
    (heading.to_vec(), report.rows.iter().map(line).collect())
}

/// Several NATs, a column each.
pub fn side_by_side(reports: &[Report]) -> Table {
    let mut heading = vec!["SOURCE".to_owned(), "CHECK".to_owned()];
    heading.extend(reports.iter().map(|report| report.target.clone()));
    let Some(first) = reports.first() else {
        return (heading, Vec::new());
    };
    let line = |(index, row): (usize, &Row)| {
        let mut line = vec![row.check.source().to_owned(), row.check.name().to_owned()];
        let cell = |report: &Report| match report.rows.get(index) {
            Some(row) => format!("{}: {}", row.verdict.label(), row.observed),
            None => String::new(),
        };
        line.extend(reports.iter().map(cell));
        line
    };
    let rows = first.rows.iter().enumerate().map(line).collect();
    (heading, rows)
}

/// All rows of all NATs, with a heading.
///
/// # Errors
/// Never in practice: it is written to memory.
pub fn csv(reports: &[Report]) -> Result<String, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record([
        "target",
        "family",
        "name",
        "source",
        "requirement",
        "observed",
        "verdict",
    ])?;
    for report in reports {
        let family = report.family.label();
        for row in &report.rows {
            writer.write_record([
                &report.target,
                family,
                row.check.name(),
                row.check.source(),
                row.check.requirement(),
                &row.observed,
                row.verdict.label(),
            ])?;
        }
    }
    let bytes = writer.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The reports of each family, in its order.
pub fn by_family(reports: Vec<Report>) -> Vec<Vec<Report>> {
    let mut groups: Vec<Vec<Report>> = Vec::new();
    for report in reports {
        match groups
            .iter_mut()
            .find(|group| group[0].family == report.family)
        {
            Some(group) => group.push(report),
            None => groups.push(vec![report]),
        }
    }
    groups
}

/// The reports of one family for people: a table of one NAT, or several side by side.
pub fn text(reports: &[Report]) -> Table {
    match reports {
        [one] => table(one),
        several => side_by_side(several),
    }
}

/// The same as a table of Markdown.
pub fn markdown(reports: &[Report]) -> String {
    let (heading, rows) = text(reports);
    let mut text = String::new();
    for report in reports {
        text.push_str(&format!("{}\n\n", report.summary()));
    }
    let mut line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    };
    line(&heading);
    line(&vec!["---".to_owned(); heading.len()]);
    for row in &rows {
        line(row);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::matrix::{Check, Matrix};
    use super::*;

    fn report(target: &str) -> Report {
        let mut matrix = Matrix::default();
        matrix.judge(Check::UdpMapping, true, "a | \"b\", c");
        matrix.judge(Check::TcpMapping, false, "no");
        Report {
            target: target.to_owned(),
            family: Family::V4,
            mode: Mode::Translated,
            inside: [10, 0, 0, 2].into(),
            remotes: [[192, 0, 2, 2].into(), [192, 0, 2, 3].into()],
            externals: vec![[192, 0, 2, 1].into()],
            seed: 7,
            seconds: 1.25,
            rows: matrix.into_rows(),
        }
    }

    #[test]
    fn every_form_has_every_row() {
        let reports = [report("ours"), report("theirs")];
        let count = Check::ALL.len();
        assert_eq!(table(&reports[0]).1.len(), count);
        let (heading, rows) = side_by_side(&reports);
        assert_eq!(heading, ["SOURCE", "CHECK", "ours", "theirs"]);
        assert_eq!(rows.len(), count);
        let text = csv(&reports).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), 2 * count);
        assert_eq!(&records[0][5], "a | \"b\", c", "quoted as it must be");
        let text = markdown(&reports[..1]);
        assert!(text.contains("a \\| \"b\", c"), "{text}");
        assert_eq!(text.lines().count(), 2 + 2 + count);
        let value = serde_json::to_value(&reports[0]).unwrap();
        assert_eq!(value["rows"][0]["verdict"], "pass");
        assert_eq!(value["rows"][1]["verdict"], "deviation");
        assert_eq!(value["rows"][2]["verdict"], "not-tested");
        assert_eq!(value["rows"][0]["source"], "RFC 4787 REQ-1");
        assert_eq!(value["family"], "IPv4");
        assert_eq!(value["mode"], "translated");
        assert_eq!(&records[0][1], "IPv4");
    }

    #[test]
    fn each_family_has_a_table_of_its_own() {
        let six = |target| Report {
            family: Family::V6,
            mode: Mode::Routed,
            ..report(target)
        };
        let reports = vec![report("a"), six("a"), report("b"), six("b")];
        let groups = by_family(reports);
        let names = |group: &Vec<Report>| {
            let named = group
                .iter()
                .map(|report| (report.target.clone(), report.family));
            named.collect::<Vec<_>>()
        };
        let of = |family| vec![("a".to_owned(), family), ("b".to_owned(), family)];
        let named: Vec<_> = groups.iter().map(names).collect();
        assert_eq!(named, [of(Family::V4), of(Family::V6)]);
        let summary = groups[1][0].summary();
        assert!(
            summary.starts_with("a, IPv6: 10.0.0.2, no translation: routed;"),
            "{summary}"
        );
    }

    #[test]
    fn the_summary_counts() {
        let untested = Check::ALL.len() - 2;
        let summary = report("ours").summary();
        let counts = format!("1 pass, 1 deviate, {untested} not tested");
        assert!(summary.contains(&counts), "{summary}");
    }
}
