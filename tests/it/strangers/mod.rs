//! What strangers found who looked at a running cluster from outside: a file for each of their subjects.

mod healing;
