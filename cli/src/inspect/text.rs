//! The report as text.

use std::fmt::Write as _;

use indicatif::{HumanBytes, HumanCount};

use super::report::{ComponentReport, Report, Weights};

/// Formats the report.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write(&mut text, report);
    text
}

fn write(text: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(text, "{}", report.folder.display())?;
    writeln!(text, "  pipeline   {}", or_none(report.pipeline.as_deref()))?;
    writeln!(text, "  inputs     {}", report.inputs.join(", "))?;
    writeln!(text, "  scheduler  {}", or_none(report.scheduler.as_deref()))?;
    writeln!(text, "  weights    {}", weights(&report.total))?;
    if let Some(digest) = &report.digest {
        writeln!(text, "  digest     {digest}")?;
    }
    writeln!(text)?;
    for component in &report.components {
        write_component(text, component)?;
    }
    if !report.not_served.is_empty() {
        let bytes: u64 = report.not_served.values().sum();
        writeln!(text, "\nnot needed for serving, {}:", HumanBytes(bytes))?;
        for (path, bytes) in &report.not_served {
            writeln!(text, "  {}  {}", path.display(), HumanBytes(*bytes))?;
        }
    }
    for warning in &report.warnings {
        writeln!(text, "\nwarning: {warning}")?;
    }
    writeln!(text)?;
    for problem in &report.problems {
        writeln!(text, "problem: {problem}")?;
    }
    match (report.problems.is_empty(), report.loaded) {
        (true, true) => writeln!(text, "The server loads this folder."),
        (true, false) => writeln!(text, "No file is missing. The model was not loaded."),
        (false, _) => writeln!(text, "The server refuses this folder."),
    }
}

fn write_component(text: &mut String, component: &ComponentReport) -> std::fmt::Result {
    write!(text, "{:18} {}.{}", component.name, component.library, component.class)?;
    match &component.weights {
        Some(own) => writeln!(text, ", {}", weights(own))?,
        None => writeln!(text)?,
    }
    for (path, bytes) in &component.files {
        writeln!(text, "  {}  {}", path.display(), HumanBytes(*bytes))?;
    }
    Ok(())
}

fn weights(weights: &Weights) -> String {
    let dtypes: Vec<String> = weights.dtypes.keys().cloned().collect();
    format!(
        "{} parameters in {} tensors, {}, {}",
        HumanCount(weights.parameters),
        weights.tensors,
        HumanBytes(weights.bytes),
        if dtypes.is_empty() {
            "none".to_owned()
        } else {
            dtypes.join(" and ")
        }
    )
}

fn or_none(text: Option<&str>) -> &str {
    text.unwrap_or("none")
}
