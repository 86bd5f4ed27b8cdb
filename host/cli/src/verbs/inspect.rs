//! `skep inspect`.

use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;
use skep_core::printable::printable_lines;
use skep_machine::wasm::{Inspection, inspect};
use wit_component::WitPrinter;

use super::failure::Failure;
use super::{Form, Output, output};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The component: a .wasm file
    component: PathBuf,
    /// Prints the WIT text of its world alone
    #[arg(long)]
    wit: bool,
    #[command(flatten)]
    form: Form,
}

#[derive(Serialize)]
struct Printed {
    #[serde(flatten)]
    inspection: Inspection,
    wit: String,
}

pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let path = &arguments.component;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let inspection = inspect(&bytes)
        .map_err(Failure::of)
        .with_context(|| path.display().to_string())?;
    let wit = wit(&bytes).with_context(|| format!("{}: its world", path.display()))?;
    if arguments.wit && arguments.form.output == Output::Text {
        return output::raw(printable_lines(&wit).as_bytes());
    }
    output::print(arguments.form, &Printed { inspection, wit }, |printed| {
        text(&printed.inspection)
    })
}

/// The world of a component, with the packages it refers to, as WIT text.
fn wit(bytes: &[u8]) -> anyhow::Result<String> {
    let decoded = wit_component::decode(bytes)?;
    let (resolve, package) = (decoded.resolve(), decoded.package());
    let others: Vec<_> = resolve
        .packages
        .iter()
        .map(|(id, _)| id)
        .filter(|id| *id != package)
        .collect();
    let mut printer = WitPrinter::default();
    printer.print(resolve, package, &others)?;
    Ok(printer.output.to_string())
}

/// Whether a node can take the machine's memory for its whole state, and if not, why and what that means.
fn image(found: &Inspection) -> String {
    match found.no_image {
        None => "yes".to_owned(),
        Some(why) => format!(
            "no: {why}. It runs all the same; a node that needs its state anew gets it from a snapshot and the commands since, \
             not from a copy of its memory ({})",
            why.name()
        ),
    }
}

fn text(found: &Inspection) -> String {
    let yes = |holds: bool| if holds { "yes" } else { "no" };
    let lines = |items: &[String]| {
        items
            .iter()
            .map(|item| format!("  {item}\n"))
            .collect::<String>()
    };
    let mut text = format!(
        "component  {}\nsize       {} bytes, {} functions\ninit       {}\nqueries    {}\nbatch      {}\nimage      {}\nexports\n{}imports\n{}",
        found.id,
        found.size,
        found.functions,
        yes(found.interfaces.initializer),
        yes(found.interfaces.queries),
        yes(found.interfaces.batch),
        image(found),
        lines(&found.exports),
        lines(&found.imports),
    );
    if !found.producers.is_empty() {
        text.push_str("made with\n");
        for producer in &found.producers {
            text.push_str(&format!(
                "  {} {} {}\n",
                producer.field, producer.name, producer.version
            ));
        }
    }
    text
}
