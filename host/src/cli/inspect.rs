//! `skep inspect`.

use std::path::PathBuf;

use anyhow::Context;
use skep::host_error::HostError;
use skep_machine::wasm::{Inspection, inspect};

use super::failure::Failure;
use super::{Form, output};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The component: a .wasm file
    component: PathBuf,
    #[command(flatten)]
    form: Form,
}

pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let path = &arguments.component;
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let inspection = inspect(&bytes).map_err(|error| Failure::from(HostError::from(error)));
    output::print(
        arguments.form,
        &inspection.with_context(|| path.display().to_string())?,
        text,
    )
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
        "component  {}\nsize       {} bytes, {} functions\ninit       {}\nqueries    {}\nbatch      {}\nexports\n{}imports\n{}",
        found.id,
        found.size,
        found.functions,
        yes(found.interfaces.initializer),
        yes(found.interfaces.queries),
        yes(found.interfaces.batch),
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
