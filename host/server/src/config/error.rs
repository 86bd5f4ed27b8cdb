//! Why a configuration cannot be used.

use std::path::PathBuf;

use skep_types::code::Code;

/// Why a configuration cannot be used. The message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration {path}; give its path with --config, see `skep serve --help`"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or a type that is not known.
    #[error("{path} is not a valid configuration: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// An environment variable overrides something that cannot be overridden.
    #[error("the environment variable {name} cannot be used: {message}")]
    Environment {
        /// The variable.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A value is well-formed and makes no sense.
    #[error("{key}: {message}")]
    Invalid {
        /// The key, with its section.
        key: String,
        /// What is wrong and what to do.
        message: String,
    },
}

impl ConfigError {
    /// A value of a key, with its section, that makes no sense.
    pub fn invalid(key: &str, message: impl Into<String>) -> Self {
        Self::Invalid {
            key: key.to_owned(),
            message: message.into(),
        }
    }

    /// The stable code of every configuration error.
    pub fn code(&self) -> Code {
        Code::InvalidConfig
    }
}
