//! The checker, checked: histories that it must reject and that it must accept, by hand and generated, and a search that is
//! too simple to be wrong beside it.

mod brute_force;
mod by_hand;
mod files;
mod generated;
mod large;
mod machine;
mod simulate;
mod xorshift;
