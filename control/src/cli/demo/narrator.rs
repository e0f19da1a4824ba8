//! What the demo says, in words for people or as JSON for programs.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::api::types::TraceView;

/// Tells the demo and keeps count of outcomes that differ from what was to be shown.
pub struct Narrator {
    json: bool,
    colour: bool,
    scene: usize,
    differing: usize,
}

/// One thing said, for `--json`.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Said<'a> {
    Scene {
        number: usize,
        title: &'a str,
    },
    Note {
        scene: usize,
        text: &'a str,
    },
    Frame {
        scene: usize,
        frame: &'a TraceView,
    },
    Outcome {
        scene: usize,
        text: &'a str,
        shown: bool,
    },
    End {
        scenes: usize,
        differing: usize,
        seconds: f64,
    },
}

impl Narrator {
    /// A narrator at the beginning.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            colour: !json && io::stdout().is_terminal(),
            scene: 0,
            differing: 0,
        }
    }

    /// Begins a scene.
    pub fn scene(&mut self, title: &str) -> io::Result<()> {
        self.scene += 1;
        let number = self.scene;
        if self.json {
            return self.object(&Said::Scene { number, title });
        }
        self.line(&format!("\n{}", self.bold(&format!("{number}. {title}"))))
    }

    /// Says something that was read from the system.
    pub fn note(&self, text: &str) -> io::Result<()> {
        if self.json {
            return self.object(&Said::Note {
                scene: self.scene,
                text,
            });
        }
        self.line(&format!("   {text}"))
    }

    /// Shows what the data path did with a frame.
    pub fn frame(&self, frame: &TraceView) -> io::Result<()> {
        if self.json {
            return self.object(&Said::Frame {
                scene: self.scene,
                frame,
            });
        }
        self.line(&format!("   {} sends: {}", frame.port_name, frame.summary))?;
        for step in frame.steps.iter().filter(|step| tells(&step.stage)) {
            self.line(&format!("      {:8} {}", step.stage, step.text))?;
        }
        Ok(())
    }

    /// Says whether an outcome is what was to be shown.
    pub fn outcome(&mut self, shown: bool, text: &str) -> io::Result<()> {
        self.differing += usize::from(!shown);
        if self.json {
            return self.object(&Said::Outcome {
                scene: self.scene,
                text,
                shown,
            });
        }
        let mark = if shown { "ok  " } else { "NOT " };
        self.line(&format!("   {mark}{text}"))
    }

    /// Ends the demo; how many outcomes differed.
    pub fn end(&self, seconds: f64) -> io::Result<usize> {
        let (scenes, differing) = (self.scene, self.differing);
        if self.json {
            self.object(&Said::End {
                scenes,
                differing,
                seconds,
            })?;
        } else if differing == 0 {
            self.line(&format!(
                "\n{scenes} scenes in {seconds:.1} s, every outcome as it should be; nothing is \
                 left behind"
            ))?;
        } else {
            self.line(&format!(
                "\n{differing} outcomes differ from what should have been"
            ))?;
        }
        Ok(differing)
    }

    fn object(&self, said: &Said<'_>) -> io::Result<()> {
        let text = serde_json::to_string(said)?;
        self.line(&text)
    }

    fn line(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }

    fn bold(&self, text: &str) -> String {
        if self.colour {
            format!("\x1b[1m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Stages whose words a newcomer needs; the others are for `causeway trace`.
fn tells(stage: &str) -> bool {
    !matches!(stage, "ingress" | "parse")
}
