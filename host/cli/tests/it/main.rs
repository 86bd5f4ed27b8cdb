//! Tests of the command line as a package.

mod layout;
