//! `SKEP_SECTION__KEY` over the table of a file.

use super::ConfigError;

const PREFIX: &str = "SKEP_";
const SEPARATOR: &str = "__";

/// Lays the variables over the table; returns the names of those used, sorted. Variables of Skep without `__` are the
/// command line's (`SKEP_AT`) and are left alone.
pub(super) fn apply(
    table: &mut toml::Table,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<String>, ConfigError> {
    let mut used = Vec::new();
    for (name, value) in environment {
        let Some((section, key)) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once(SEPARATOR))
        else {
            continue;
        };
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        let entry = table
            .entry(section.clone())
            .or_insert_with(|| toml::Table::new().into());
        let Some(section) = entry.as_table_mut() else {
            let message = format!("`{section}` is no section of the configuration");
            return Err(ConfigError::Environment { name, message });
        };
        section.insert(key.clone(), parse(&key, &value));
        used.push(name);
    }
    used.sort();
    Ok(used)
}

/// A variable has no type of its own: numbers, booleans and arrays are read as TOML, everything else is text. The
/// keys that hold names and paths stay text even where it looks like a number.
fn parse(key: &str, value: &str) -> toml::Value {
    const TEXT: [&str; 6] = [
        "name",
        "data_dir",
        "peer",
        "client",
        "http",
        "join_token_file",
    ];
    let text = || toml::Value::String(value.to_owned());
    if TEXT.contains(&key) {
        return text();
    }
    match toml::from_str::<toml::Table>(&format!("value = {value}")) {
        Ok(mut table) if table.len() == 1 => table.remove("value").unwrap_or_else(text),
        _ => text(),
    }
}
