//! Reports as a person sees them: a browser complains of nothing, and a picture of the page has every plot.
//!
//! # Theory of operation
//! One report of each kind of plot, of invented figures. The browser tells where the plots of a page are, makes
//! a picture of the whole page, and then reads that picture back: a plot is seen when its place holds enough
//! that is not background, in more than one colour.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const CHROMIUM: &str = "/usr/bin/chromium";
/// Width of the window, in pixels: a laptop's half.
const WIDTH: u32 = 1_000;
/// Height of the window that the page is laid out in before its own height is known.
const HEIGHT: u32 = 1_400;
/// Tallest page that is photographed: what browsers without a graphics card paint.
const HEIGHT_MAX: u32 = 16_000;
/// Least size of a plot, in pixels.
const PLOT_MIN: (u32, u32) = (300, 80);
/// Least share of a plot's pixels that are not background, in thousandths: axes alone have less.
const INK_MIN: u32 = 8;
/// Least count of colours of a plot, each of at least [`COLOUR_PIXELS_MIN`] pixels.
const COLOURS_MIN: u32 = 3;
/// Pixels of a colour that is no smoothed edge.
const COLOUR_PIXELS_MIN: u32 = 40;

/// A report of each kind of plot, with the headings that its plots have.
const REPORTS: [(&str, &[&str]); 8] = [
    ("pair-frames", &["Rate", "Rate by frame size"]),
    ("backends-small", &["Rate", "CPU time"]),
    ("pair-latency", &["Latency distribution"]),
    (
        "workers",
        &["Throughput by workers", "Who spends the CPU time"],
    ),
    ("scale-ports", &["Cost by ports"]),
    ("scale-stations", &["Cost by stations"]),
    ("scale-sessions", &["Cost by sessions"]),
    (
        "scale-sandboxes",
        &["CPU time by ports", "Who spends the CPU time"],
    ),
];

/// Tells where each plot is, and how tall the page.
const MEASURE: &str = "<script>
for (const svg of document.querySelectorAll('svg')) {
  const at = svg.getBoundingClientRect();
  svg.dataset.place = [at.x, at.y + scrollY, at.width, at.height].map(Math.round).join(' ');
}
document.body.dataset.tall = document.documentElement.scrollHeight;
</script></body>";

/// Reads a picture back: of each place, thousandths that are not background, and the count of colours.
const LOOK: &str = "<!DOCTYPE html><body><img src='PICTURE'><script>
addEventListener('load', () => {
  const image = document.images[0], canvas = document.createElement('canvas');
  canvas.width = image.width; canvas.height = image.height;
  const paper = canvas.getContext('2d', { willReadFrequently: true });
  paper.drawImage(image, 0, 0);
  const seen = [PLACES].map(([x, y, width, height]) => {
    const all = new Uint32Array(paper.getImageData(x, y, width, height).data.buffer);
    const counts = new Map();
    for (const colour of all) counts.set(colour, (counts.get(colour) || 0) + 1);
    const most = Math.max(...counts.values());
    const colours = [...counts.values()].filter(count => count >= LEAST).length;
    return `${Math.round(1000 * (all.length - most) / all.length)} ${colours}`;
  });
  document.body.dataset.seen = seen.join(', ');
});
</script></body>";

/// Whether there is a browser; says what would bring one.
fn have_chromium(test: &str) -> bool {
    let there = Path::new(CHROMIUM).exists();
    if !there {
        eprintln!(
            "needs chromium: {test} (install the Debian packages chromium and fonts-dejavu-core, or run \
             tests/run --references)"
        );
    }
    there
}

/// Runs the browser on a page and returns what it prints; its console must stay empty.
fn browse(dir: &TempDir, height: u32, more: &[&str], page: &Path) -> String {
    let profile = dir.path().join("profile");
    let output = Command::new(CHROMIUM)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args([
            "--no-first-run",
            "--disable-background-networking",
            "--disable-sync",
        ])
        .args(["--disable-component-update", "--enable-logging=stderr"])
        .args(["--hide-scrollbars", "--allow-file-access-from-files"])
        // A page is painted when its script is done, however busy the machine.
        .args([
            "--virtual-time-budget=10000",
            "--force-device-scale-factor=1",
        ])
        .arg(format!("--window-size={WIDTH},{height}"))
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(more)
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("chromium starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let console: Vec<&str> = said.lines().filter(|l| l.contains("CONSOLE")).collect();
    assert!(console.is_empty(), "{}: {console:?}", page.display());
    assert!(output.status.success(), "{}: {said}", page.display());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The page of a scenario that comes with the program, of invented figures.
fn report(dir: &TempDir, scenario: &str) -> PathBuf {
    let bench = |arguments: &[&str]| {
        let status = Command::new(env!("CARGO_BIN_EXE_bench"))
            .args(arguments)
            .output()
            .expect("bench starts");
        let said = String::from_utf8_lossy(&status.stderr);
        assert!(status.status.success(), "{arguments:?}: {said}");
    };
    let out = dir.path().join(scenario);
    let out_text = out.to_str().expect("a path in UTF-8");
    bench(&[
        "run",
        scenario,
        "--invented",
        "0.02",
        "--repeats",
        "5",
        "--out",
        out_text,
    ]);
    let mut entries = fs::read_dir(&out).expect("a directory").flatten();
    let result = entries.find(|entry| entry.path().extension().is_some_and(|end| end == "json"));
    let result = result.expect("a result").path();
    let page = dir.path().join(format!("{scenario}.html"));
    let page_text = page.to_str().expect("a path in UTF-8");
    bench(&[
        "report",
        "--html",
        page_text,
        result.to_str().expect("a path in UTF-8"),
    ]);
    page
}

/// The values of an attribute in a page, in order.
fn attributes<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!("data-{name}=\"");
    let parts = page.split(begin.as_str()).skip(1);
    parts.filter_map(|rest| rest.split('"').next()).collect()
}

fn numbers(text: &str) -> Vec<u32> {
    let words = text.split_whitespace();
    words.map(|word| word.parse().expect("a number")).collect()
}

/// Asserts that a picture of a page has every plot of it.
fn assert_every_plot_is_seen(dir: &TempDir, scenario: &str, headings: &[&str]) {
    let page = report(dir, scenario);
    let text = fs::read_to_string(&page).expect("a page");
    for heading in headings {
        let mut ends = ["</h2>", "</h3>", ", "].iter();
        let found = ends.any(|end| text.contains(&format!(">{heading}{end}")));
        assert!(found, "{scenario}: no heading {heading}");
    }
    let probe = dir.path().join("probe.html");
    fs::write(&probe, text.replace("</body>", MEASURE)).expect("a file");
    let shown = browse(dir, HEIGHT, &["--dump-dom"], &probe);
    let places: Vec<Vec<u32>> = attributes(&shown, "place")
        .into_iter()
        .map(numbers)
        .collect();
    assert_eq!(places.len(), text.matches("<svg").count(), "{scenario}");
    assert!(!places.is_empty(), "{scenario} has a plot");
    for place in &places {
        let large = place[2] >= PLOT_MIN.0 && place[3] >= PLOT_MIN.1;
        assert!(large, "{scenario}: a plot of {}x{}", place[2], place[3]);
        assert!(
            place[0] + place[2] <= WIDTH,
            "{scenario}: a plot is cut off: {place:?}"
        );
    }
    let tall = numbers(attributes(&shown, "tall")[0])[0];
    assert!(tall <= HEIGHT_MAX, "{scenario} is {tall} pixels tall");

    let picture = dir.path().join(format!("{scenario}.png"));
    browse(
        dir,
        tall,
        &[&format!("--screenshot={}", picture.display())],
        &page,
    );
    let listed: Vec<String> = places.iter().map(|place| format!("{place:?}")).collect();
    let look = LOOK
        .replace("PICTURE", &format!("file://{}", picture.display()))
        .replace("PLACES", &listed.join(", "))
        .replace("LEAST", &COLOUR_PIXELS_MIN.to_string());
    fs::write(&probe, look).expect("a file");
    let shown = browse(dir, HEIGHT, &["--dump-dom"], &probe);
    let seen = attributes(&shown, "seen");
    let seen: Vec<Vec<u32>> = seen[0].split(", ").map(numbers).collect();
    assert_eq!(seen.len(), places.len(), "{scenario}");
    for (index, found) in seen.iter().enumerate() {
        let visible = found[0] >= INK_MIN && found[1] >= COLOURS_MIN;
        assert!(
            visible,
            "{scenario}: plot {index} is not seen: {found:?} at {:?}",
            places[index]
        );
    }
    println!("{scenario}: {} plots on {tall} pixels", places.len());
}

#[test]
fn a_browser_shows_every_plot_of_every_kind_without_complaint() {
    if !have_chromium("a_browser_shows_every_plot_of_every_kind_without_complaint") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    for (scenario, headings) in REPORTS {
        assert_every_plot_is_seen(&dir, scenario, headings);
    }
    if let Some(kept) = std::env::var_os("KEEP_PICTURES") {
        for (scenario, _) in REPORTS {
            let name = format!("{scenario}.png");
            fs::copy(dir.path().join(&name), Path::new(&kept).join(&name)).expect("a copy");
        }
    }
}
