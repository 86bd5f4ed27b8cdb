//! What people who do not know the house found out about it, and what it makes of that now. See `tests/BUGS.md`.

mod activation;
mod catch_up;
mod compile;
mod disk;
mod doors;
mod healing;
mod logs;
mod machines;
mod peers;
mod sessions;
